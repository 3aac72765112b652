"""`scripts/gpu`: measurements on a GPU that is available only for minutes.

A *visit* is a list of *parts*, and a part is a list of *cells*: small measurements, the most
important ones first. Each part runs in a process of its own under a time limit (`supervise`), and
each cell is a line of a JSON-lines file, on the disk before the next one starts (`results`). Cells
that are in the file already are not measured again. Everything also runs on a CPU with tiny sizes
(`--rehearse`), which shows that the code works, but nothing about speed.
"""

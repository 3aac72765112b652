"""`scripts/gpu`: what is to be measured on a GPU that is at hand for minutes.

A *visit* is a list of *parts*, a part a list of *cells*: small measurements, most important ones
first. Each part runs in a process of its own under a time limit (`supervise`), and each cell is a
line of a JSON-lines file, on the disk before the next one starts (`results`). Cells that are there
already are not measured again. Everything runs on a CPU too, with tiny sizes (`--rehearse`), which
shows that the code works, and nothing about speed.
"""

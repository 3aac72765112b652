"""The analysis of what weight decay does to a training (Bjorck, Weinberger & Gomes 2021).

`analysis.py` carries it out.
"""

"""What does weight decay do to a training? After Bjorck, Weinberger & Gomes (2021): see
`analysis.py`."""

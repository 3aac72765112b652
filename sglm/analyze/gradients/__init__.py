"""The quality of the gradients that a run follows, after Ilyas et al. (2020): see `analysis.py`."""

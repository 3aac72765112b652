"""The curvature of the loss in each weight matrix, after Wu et al. (2020): see `analysis.py`."""

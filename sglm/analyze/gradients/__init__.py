"""How good are the gradients that a run follows? After Ilyas et al. (2020): see `analysis.py`."""

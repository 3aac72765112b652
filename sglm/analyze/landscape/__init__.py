"""The loss along steps in a gradient's direction, after Ilyas et al. (2020): see `analysis.py`."""

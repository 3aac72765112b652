"""Does a step along a gradient go down the true loss? After Ilyas et al. (2020): see
`analysis.py`."""

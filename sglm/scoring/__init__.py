"""Probabilities of texts: predictors, and the functions that score texts with them."""

"""Predictors that adapt while they read: they learn from the text before each token."""

"""Decoupled neural interfaces: estimators of the gradient that the future would send back."""

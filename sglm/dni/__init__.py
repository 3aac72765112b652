"""Decoupled neural interfaces: what predicts the gradient that the future would send back."""

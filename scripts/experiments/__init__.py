"""Experiments on the use of synthetic gradients, reported in docs/results.md, with pictures."""

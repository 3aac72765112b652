"""Comparisons: variants × seeds of one configuration, all with the same number of updates."""

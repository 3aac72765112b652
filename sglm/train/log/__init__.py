"""The logs of a run: console, JSON lines, TensorBoard."""

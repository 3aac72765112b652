"""Benchmarks of the speed and memory of sglm, beside the limits of the machine."""

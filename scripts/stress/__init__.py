"""Stress tests of sglm: kills at any moment, days of work, damaged and random input."""

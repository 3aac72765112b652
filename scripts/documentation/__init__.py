"""Generates parts of the documentation: tables from committed numbers, and the reference."""

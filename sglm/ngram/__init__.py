"""N-gram models with back-off: read from ARPA files, and scored."""

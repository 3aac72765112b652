"""N-gram models with back-off: reads them from ARPA files and scores text with them."""

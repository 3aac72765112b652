"""How probable a text is: predictors, and what reads texts through them."""

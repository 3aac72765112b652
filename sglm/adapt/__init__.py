"""Models that adapt while they read: predictors that learn from the text before each token."""

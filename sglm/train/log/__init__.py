"""What a run writes down while it trains: console, JSON lines, TensorBoard."""

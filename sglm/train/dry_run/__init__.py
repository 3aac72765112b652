"""What a run would do and how much memory it would take, before it starts."""

"""The dry run: the plan of a run, and the memory that it would take, before it starts."""

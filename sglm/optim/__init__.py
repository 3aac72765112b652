"""How weights move: the schedule, the optimizer, the precision."""

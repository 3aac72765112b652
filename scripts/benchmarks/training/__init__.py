"""`scripts/bench`: speed and memory of training steps, arm by arm."""

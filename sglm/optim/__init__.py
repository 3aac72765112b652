"""The parts that move the weights: schedule, optimizer, precision, running mean."""

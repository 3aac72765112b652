"""What synthetic gradients are good for: trainings that docs/results.md tells of, and pictures."""

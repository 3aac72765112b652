"""Training: build the parts, step through the windows, report."""

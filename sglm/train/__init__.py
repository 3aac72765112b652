"""Training: builds the parts, steps through the windows, reports."""

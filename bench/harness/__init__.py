"""What every bench shares: machine, input, contestants, timing, reports."""

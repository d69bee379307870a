"""What to rank weights by."""

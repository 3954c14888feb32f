"""The page of all experiments."""

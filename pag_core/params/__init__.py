"""params.yaml: the values that it may hold, its sections, and how it is read."""

"""The runs of an experiment as DVC experiments."""

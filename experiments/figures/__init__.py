"""Figures over the runs of experiments."""

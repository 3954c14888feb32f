"""The pictures of an experiment: one file per figure, each a function that returns a `matplotlib.figure.Figure`."""

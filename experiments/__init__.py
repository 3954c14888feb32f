"""Experiments of several classifiers, described as data, and the command that runs them."""

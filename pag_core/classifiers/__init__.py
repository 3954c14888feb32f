"""Classifiers: images float [0, 1] NCHW in, logits out; normalisation is inside."""

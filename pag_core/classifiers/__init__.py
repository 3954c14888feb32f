"""Classifiers: images float [0, 1] NCHW in, logits out; normalisation lies inside."""

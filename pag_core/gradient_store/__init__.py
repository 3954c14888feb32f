"""Target gradients on disk (Zarr) and on their way into the training."""

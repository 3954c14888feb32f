"""Image classification datasets: verified loading, splits, fingerprint."""

"""Ratios measured side by side against plain implementations that are kept here; see README.md."""

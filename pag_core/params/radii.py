"""Radii as they are written: labels, by which results name them, and their values."""

import fractions


def radius_value(label: str) -> float:
    """The value of a radius as it is written in params.yaml: a number or a fraction such as `8/255`."""
    return float(fractions.Fraction(label))

"""Attacks and their settings `NORM RADIUS`, as the keys of metrics have them and as readers meet them.

Apart from the code that attacks, so that a new title lets nothing be attacked again.
"""

from pag_core.params.radii import radius_value

AUTOATTACK_NAMES = {
    "apgd-ce": "APGD (cross-entropy)",
    "apgd-dlr": "APGD (DLR)",
    "apgd-t": "APGD-T (targeted)",
    "fab": "FAB",
    "fab-t": "FAB-T (targeted)",
    "square": "Square (black-box)",
}
# by version, because a metrics file (keys sorted) does not keep the order
AUTOATTACK_SEQUENCES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
}
# in the order of Table 6, by which its published numbers go; further attacks come after them
FOOLBOX_NAMES = {
    "SaltAndPepperNoiseAttack": "Salt-and-pepper noise",
    "BinarySearchContrastReductionAttack": "Contrast reduction",
    "GaussianBlurAttack": "Gaussian blur",
    "LinearSearchBlendedUniformNoiseAttack": "Blended uniform noise",
    "L0FMNAttack": "FMN, L₀",
    "L1FMNAttack": "FMN, L₁",
    "EADAttack": "EAD",
}
_NORM_SYMBOLS = {"L0": "L\N{SUBSCRIPT ZERO}", "L1": "L\N{SUBSCRIPT ONE}", "L2": "L\N{SUBSCRIPT TWO}", "Linf": "L∞"}


def norm_label(norm: str) -> str:
    """The norm as it is typeset: `L∞` for `Linf`."""
    return _NORM_SYMBOLS[norm]


def norm_and_radius(setting: str) -> tuple[str, str]:
    """The norm and the radius, as in params.yaml, of a metric's key such as `Linf 8/255`."""
    norm, radius = setting.split(" ")
    return norm, radius


def settings_by_norm(settings: list[str]) -> dict[str, list[str]]:
    """The keys `NORM RADIUS` grouped by norm (L0, L1, L2, Linf), radii ascending: metrics files sort them as text."""
    grouped: dict[str, list[str]] = {}
    for norm, radius in sorted(map(norm_and_radius, settings), key=lambda pair: (pair[0], radius_value(pair[1]))):
        grouped.setdefault(norm, []).append(f"{norm} {radius}")
    return grouped


def setting_label(setting: str) -> str:
    """A metric's key in words: `L2 0.75` as `L₂, radius 0.75`."""
    norm, radius = norm_and_radius(setting)
    return f"{norm_label(norm)}, radius {radius}"

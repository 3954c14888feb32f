"""Fonts for names in any script: which installed ones draw what the figures' own font lacks, and what none of them draws."""

import functools
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FONT = "DejaVu Sans"
# joiners and selectors of a form, which are not to be seen; FONT has them
INVISIBLE = "\u200c\u200d\ufe0e\ufe0f"


@functools.cache
def families_for(characters: frozenset[str]) -> tuple[str, ...]:
    """The installed families that draw what FONT lacks of `characters`, as far as any does: as few as may be, by name.

    matplotlib takes each character from the first family that has it, and shapes what it takes from one (right to left,
    joined letters).
    """
    left = _visible(characters) - _drawn_by(FONT, characters)
    names = sorted({entry.name for entry in font_manager.fontManager.ttflist if _is_of_text(entry)}) if left else []
    drawn = {name: _drawn_by(name, left) for name in names}
    chosen: list[str] = []
    while left and names:
        best = min(names, key=lambda name: (-len(drawn[name] & left), "sans" not in name.lower(), name))
        if not drawn[best] & left:
            break
        chosen.append(best)
        left -= drawn[best]
    return tuple(chosen)


def escaped(text: str) -> str:
    """`text` with an escape, as `\\u732b`, for each character that cannot be seen or that no installed font draws."""
    characters = frozenset(text)
    drawn = frozenset(INVISIBLE).union(
        *(_drawn_by(name, _visible(characters)) for name in (FONT, *families_for(characters)))
    )
    return "".join(one if one in drawn else one.encode("unicode_escape").decode() for one in text)


def _visible(characters: Iterable[str]) -> frozenset[str]:
    return frozenset(one for one in characters if one.isprintable() and one not in INVISIBLE)


def _is_of_text(entry: font_manager.FontEntry) -> bool:
    # matplotlib's own are of mathematics, and a last resort has a box for every character
    own = Path(entry.fname).is_relative_to(mpl.get_data_path())
    last_resort = entry.name.lower().replace(" ", "").lstrip(".").startswith("lastresort")
    regular = (entry.style, entry.stretch) == ("normal", "normal") and entry.weight in (400, "normal", "regular")
    return regular and not own and not last_resort


def _drawn_by(family: str, characters: frozenset[str]) -> frozenset[str]:
    """Those of `characters` of which the regular font of `family` has an outline; none if it cannot be read."""
    regular = font_manager.FontProperties(family=[family], style="normal", weight="normal", stretch="normal")
    try:
        font = font_manager.get_font(font_manager.findfont(regular, fallback_to_default=False))
        return frozenset(one for one in characters if one == " " or _has_outline(font, one))
    except (ValueError, OSError, RuntimeError):
        return frozenset()


def _has_outline(font: FT2Font, character: str) -> bool:
    """Of coloured emoji some fonts have bitmaps alone, of which matplotlib draws nothing."""
    if not font.scalable or not font.get_char_index(ord(character)):
        return False
    font.set_size(12, 72)
    font.load_char(ord(character))
    return len(font.get_path()[0]) > 0

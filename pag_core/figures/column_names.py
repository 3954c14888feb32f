"""Class names above columns of pictures: upright where each fits its column, else slanted, so that neighbors do not meet."""

import math
from dataclasses import dataclass
from typing import Any

from pag_core.figures.palette import SMALL_SIZE, short_name, text_width

DEGREES = 35
# inches: of a character at SMALL_SIZE, and what stands free above an upright name
CHARACTER = 0.075
FREE = 0.12
# where a slanted name begins, from the middle of its picture, in widths of it
SHIFT = -0.2
MOST_CHARACTERS = 18


@dataclass(frozen=True)
class ColumnNames:
    """Names as they are written, where, and how.

    `room` is the height in inches, and the width right of the last column, that they need beyond a line of text; `shift`
    leads from the middle of a picture to where a name is anchored, in widths of the picture. `options` are matplotlib's.
    """

    names: tuple[str, ...]
    room: float
    shift: float
    options: dict[str, Any]


def column_names(names: tuple[str, ...], *, fitting: int, size: int = SMALL_SIZE) -> ColumnNames:
    """How `names` are written above columns that hold `fitting` letters each; `size`, in points, is that of upright ones."""
    if all(text_width(name) <= fitting for name in names):
        upright = {"fontsize": size, "ha": "center", "va": "bottom"}
        return ColumnNames(names, 0.0, 0.0, upright)
    slanted = {"fontsize": SMALL_SIZE, "va": "bottom", "rotation": DEGREES, "rotation_mode": "anchor"}
    short = tuple(short_name(name, MOST_CHARACTERS) for name in names)
    room = CHARACTER * max(map(text_width, short)) * math.sin(math.radians(DEGREES)) - FREE
    return ColumnNames(short, room, SHIFT, slanted)

"""The common look of all figures: colours that colour-blind readers can tell apart, font sizes, and saving to equal bytes."""

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pag_core.figures.fonts import FONT, families_for
from pag_core.figures.png_record import as_text
from pag_core.pipeline.artifacts import replacing_file

# Okabe and Ito's blue and vermilion; everything else is grey
MODEL_COLOUR = "#0072B2"
BASELINE_COLOUR = "#D55E00"
TEXT_COLOUR = "#222222"
MUTED_COLOUR = "#6b6b6b"
GRID_COLOUR = "#e3e3e3"
# bluish green, found in neither a grey picture nor the signed colours
OWN_CLASS_COLOUR = "#009E73"
SIGNED_COLOURS = "RdBu_r"
# of two classes that are drawn as areas and points: Okabe and Ito's orange and sky blue, which stand for no network
CLASS_COLOURS = ("#E69F00", "#56B4E9")

OWN_CLASS_WIDTH = 2.4  # points

SUBTITLE_SIZE = 11
LABEL_SIZE = 10
SMALL_SIZE = 9

# of one font: those for other scripts may have no bold
TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "fontfamily": FONT}

DPI = 160
# a picture of C classes in a row is readable up to this many columns
MOST_CLASSES = 10

# Any: matplotlib's own type of the keys is one long Literal
_SETTINGS: Any = {
    "font.size": LABEL_SIZE,
    "text.color": TEXT_COLOUR,
    # names may hold dollars
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": MUTED_COLOUR,
    "axes.facecolor": "white",
    "axes.labelcolor": TEXT_COLOUR,
    "axes.labelsize": LABEL_SIZE,
    "axes.titlesize": SUBTITLE_SIZE,
    "axes.grid": False,
    "xtick.color": MUTED_COLOUR,
    "ytick.color": MUTED_COLOUR,
    "xtick.labelcolor": TEXT_COLOUR,
    "ytick.labelcolor": TEXT_COLOUR,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.bbox": None,
    "savefig.facecolor": "white",
}


# below the panels of a figure that is laid out by "constrained"
OUTSIDE_LEGEND: dict[str, Any] = {
    "loc": "outside lower center",
    "ncols": 3,
    "frameon": False,
    "fontsize": LABEL_SIZE,
    "handlelength": 3.2,
}


@contextmanager
def style(texts: Iterable[str] = ()) -> Iterator[None]:
    """The figures' settings, whatever a matplotlibrc on this machine says, and fonts for names `texts` in any script."""
    with mpl.rc_context(_SETTINGS | {"font.family": [FONT, *families_for(frozenset("".join(texts)))]}):
        yield


def save_figure(figure: Figure, path: Path, record: dict[str, Any] | None = None) -> None:
    """Write `figure` as PNG, atomically; equal figures give equal bytes, because the file names no date and no software.

    `record` says what it was drawn from (`record_of` reads it).
    """
    with replacing_file(path) as partial, style():
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None, **as_text(record)})


def pad(figure: Figure) -> None:
    """Give a figure of panels ("constrained" layout) the margins that a slide needs."""
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.05)


def tidy(axes: Axes) -> None:
    """Leave the lines of a plot that carry meaning: no box, and a grid behind the curves."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)


def shown_classes(classes: int) -> tuple[int, str]:
    """How many of `classes` a picture shows, and the words for its title where that is not all."""
    shown = min(classes, MOST_CLASSES)
    return shown, "" if shown == classes else f" (the first {shown} of {classes} classes)"


def draw_picture(axes: Axes, image: torch.Tensor) -> None:
    """Draw an image float [C, H, W] in [0, 1], C 1 (grey) or 3 (RGB), pixel by pixel and without axes."""
    pixels = image.detach().cpu().clamp(0, 1).movedim(0, -1).numpy()
    axes.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    frame(axes)


def frame(axes: Axes, colour: str = GRID_COLOUR, width: float = 0.6) -> None:
    """Remove ticks and draw a frame of `colour` and `width` (points) around a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=width)


def text_width(text: str) -> int:
    """Its width in letters: a Chinese, Japanese or Korean character or an emoji is as wide as two, an accent takes none."""
    return sum(
        0 if unicodedata.category(one) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def wrapped(text: str, most: int) -> list[str]:
    """`text` in lines of about `most` letters of width, broken at blanks where there are any."""
    return textwrap.wrap(text, max(1, most * len(text) // max(1, text_width(text))))


def short_name(class_name: str, most: int = 12) -> str:
    """A class name that fits above a picture: at most `most` letters wide."""
    if text_width(class_name) <= most:
        return class_name
    end = next(end for end in range(len(class_name) + 1) if text_width(class_name[: end + 1]) > most - 1)
    return f"{class_name[:end]}…"

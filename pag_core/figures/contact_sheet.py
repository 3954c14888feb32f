"""A sheet of small pictures: for each test image its input, and below the class names a row per method."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pag_core.figures.class_labels import LINE, ClassLabels
from pag_core.figures.column_names import column_names
from pag_core.figures.fonts import escaped
from pag_core.figures.palette import (
    LABEL_SIZE,
    MUTED_COLOUR,
    SMALL_SIZE,
    SUBTITLE_SIZE,
    TITLE,
    draw_picture,
    text_width,
    wrapped,
)

# all lengths in inches
CELL = 0.8
GAP = 0.06
BETWEEN_IMAGES = 0.24
INPUT = 1.3
NAMES = 1.75
MARGIN = 0.2
HEAD = 1.15
FOOT = 0.95
# of title and footnote, also where there are few classes
NARROWEST = 7.2
CAPTION = 0.4
FITTING = 11  # characters above a picture
ROW_FITTING = 19  # characters beside a row


class ContactSheet:
    """Places pictures by inches: `rows` (method names) times the first `shown` classes for each input image.

    `inputs` float [B, C, H, W] in [0, 1] of the classes `owns`; all classes are called as `classes` says, below the inputs
    and above the columns. Draw into `cell(image, row, column)`. Must be made and filled inside `palette.style()` of the
    names of rows and classes.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        owns: list[int],
        *,
        rows: list[str],
        classes: ClassLabels,
        shown: int,
        title: str,
        subtitle: str,
    ) -> None:
        self.rows = rows
        columns = tuple(classes.names[label] for label in range(shown))
        size = SUBTITLE_SIZE if all(text_width(name) <= 3 for name in columns) else SMALL_SIZE
        self.columns = column_names(columns, fitting=FITTING, size=size)
        self.head = HEAD + self.columns.room
        # an image with a single row still needs room for its input and caption
        self.block = max(len(rows) * (CELL + GAP), CELL + CAPTION) + BETWEEN_IMAGES
        self.left = MARGIN + INPUT + NAMES
        self.width = max(NARROWEST, self.left + len(columns) * (CELL + GAP) + self.columns.room + MARGIN)
        legend = classes.legend_lines(self.width - 2 * MARGIN)
        self.explained = LINE * len(legend)
        self.height = self.head + len(inputs) * self.block - BETWEEN_IMAGES + FOOT + self.explained
        self.figure = Figure(figsize=(self.width, self.height))
        self.figure.text(MARGIN / self.width, 1 - 0.3 / self.height, title, va="center", **TITLE)
        self._write(MARGIN, self.height - 0.56, subtitle, size=LABEL_SIZE, colour=MUTED_COLOUR)
        self._write(MARGIN, 0.12, "\n".join(legend), size=SMALL_SIZE, vertical="bottom")
        self._name_columns()
        for image, (pixels, own) in enumerate(zip(inputs, owns, strict=True)):
            self._place_input(image, pixels, classes.caption(own))
            for row, row_name in enumerate(rows):
                lines = [part for line in row_name.split("\n") for part in _broken(escaped(line))]
                middle = self._top(image, row) - CELL / 2
                self._write(self.left - 0.12, middle, "\n".join(lines), size=LABEL_SIZE, horizontal="right")

    def cell(self, image: int, row: int, column: int) -> Axes:
        """New axes for the picture of one image, method and class."""
        return self._axes(self.left + column * (CELL + GAP), self._top(image, row) - CELL, CELL)

    def footnote(self, text: str) -> None:
        """Write a line below the pictures."""
        self._write(MARGIN, 0.3 + self.explained, text, size=SMALL_SIZE, colour=MUTED_COLOUR)

    def strip(self) -> Axes:
        """New axes for a colour scale, below the pictures and above the footnote, with room for a word on either side."""
        left, bottom, width, height = self.left + 0.6, 0.62 + self.explained, 1.6, 0.12
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def _top(self, image: int, row: int) -> float:
        return self.height - self.head - image * self.block - row * (CELL + GAP)

    def _axes(self, left: float, bottom: float, side: float) -> Axes:
        return self.figure.add_axes((left / self.width, bottom / self.height, side / self.width, side / self.height))

    def _write(
        self, x: float, y: float, text: str, *, size: float, colour: str | None = None, horizontal: str = "left",
        vertical: str = "center",
    ) -> None:  # fmt: skip
        self.figure.text(
            x / self.width, y / self.height, text, fontsize=size, color=colour, ha=horizontal, va=vertical,
        )  # fmt: skip

    def _name_columns(self) -> None:
        base = self.height - self.head + 0.07
        for column, name in enumerate(self.columns.names):
            x = self.left + column * (CELL + GAP) + CELL * (0.5 + self.columns.shift)
            self.figure.text(x / self.width, base / self.height, name, **self.columns.options)
        left = MARGIN + INPUT / 2
        self._write(left, base, "input", size=SMALL_SIZE, colour=MUTED_COLOUR, horizontal="center", vertical="bottom")

    def _place_input(self, image: int, pixels: torch.Tensor, name: str) -> None:
        side = min(INPUT, len(self.rows) * (CELL + GAP) - GAP - CAPTION) if len(self.rows) > 1 else CELL
        top = self._top(image, 0)
        draw_picture(self._axes(MARGIN + (INPUT - side) / 2, top - side, side), pixels)
        self._write(MARGIN + INPUT / 2, top - side - 0.05, name, size=SMALL_SIZE, horizontal="center", vertical="top")


def _broken(line: str) -> list[str]:
    """The lines of a row's name; lambda and its value stay together."""
    if text_width(line) <= ROW_FITTING:
        return [line]
    return wrapped(line.replace("λ ", "λ\N{NO-BREAK SPACE}"), ROW_FITTING)

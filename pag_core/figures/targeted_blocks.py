"""Targeted adversarial examples for every class by several classifiers, a block for each classifier (Fig. 9 to 12)."""

import math
from typing import Any

import torch
from matplotlib.figure import Figure

from pag_core.evaluation.attacks import norm_label
from pag_core.figures.class_labels import LINE, class_labels
from pag_core.figures.column_names import column_names
from pag_core.figures.fonts import escaped
from pag_core.figures.palette import (
    LABEL_SIZE,
    MUTED_COLOUR,
    OWN_CLASS_COLOUR,
    SMALL_SIZE,
    SUBTITLE_SIZE,
    TITLE,
    draw_picture,
    frame,
    shown_classes,
    style,
)

# all lengths in inches
CELL = 0.4
GAP = 0.03
# between an image and its adversarial examples
APART = 0.12
MARGIN = 0.3
BETWEEN = 0.35
# above a block: its classifier's name and the class names
BLOCK_HEAD = 0.62
HEAD = 0.85
FOOT = 0.45
FITTING = 4  # characters above a picture
COLUMNS = 2
OWN_WIDTH = 1.6  # points


def targeted_blocks(
    images: torch.Tensor,
    labels: torch.Tensor,
    adversarial: dict[str, torch.Tensor],
    *,
    class_names: tuple[str, ...],
    norm: str,
    radius: str,
    steps: int,
) -> Figure:
    """Targeted large-radius images: in each classifier's block a row per image, which is on the left, a column per class.

    `images` float [B, C, H, W] in [0, 1], `labels` int64 [B]; `adversarial` maps a classifier's name to images
    [B, at least the classes shown, C, H, W] in [0, 1]. More than ten classes are cut to the first ten.
    """
    shown, remark = shown_classes(len(class_names))
    width = CELL + APART + shown * (CELL + GAP)
    classes = class_labels(class_names, range(shown))
    names = column_names(tuple(classes.names.values()), fitting=FITTING)
    head = BLOCK_HEAD + names.room
    height = head + len(images) * (CELL + GAP)
    columns = min(COLUMNS, len(adversarial))
    rows = math.ceil(len(adversarial) / columns)
    whole_width = max(2 * MARGIN + columns * width + (columns - 1) * BETWEEN, 7.2)
    legend = classes.legend_lines(whole_width - 2 * MARGIN)
    explained = LINE * len(legend)
    whole = (whole_width, HEAD + rows * height + (rows - 1) * BETWEEN + FOOT + explained)
    with style([*classes.texts, *adversarial]):
        figure = Figure(figsize=whole)

        def write(x: float, y: float, text: str, **options: Any) -> None:
            figure.text(x / whole[0], y / whole[1], text, **options)

        def picture(x: float, y: float, pixels: torch.Tensor, *, own: bool) -> None:
            axes = figure.add_axes((x / whole[0], y / whole[1], CELL / whole[0], CELL / whole[1]))
            draw_picture(axes, pixels)
            if own:
                frame(axes, OWN_CLASS_COLOUR, OWN_WIDTH)

        title = f"Adversarial examples for each class by targeted PGD{remark}"
        write(MARGIN, whole[1] - 0.32, title, va="center", **TITLE)
        setting = f"{norm_label(norm)} radius {radius}, {steps} steps from the image on the left"
        write(MARGIN, whole[1] - 0.58, setting, va="center", fontsize=LABEL_SIZE, color=MUTED_COLOUR)
        for number, (name, pictures) in enumerate(adversarial.items()):
            left = MARGIN + (number % columns) * (width + BETWEEN)
            top = whole[1] - HEAD - (number // columns) * (height + BETWEEN)
            write(left, top - 0.2, escaped(name), fontsize=SUBTITLE_SIZE, va="center")
            for column, class_name in enumerate(names.names):
                middle = left + CELL + APART + column * (CELL + GAP) + CELL / 2
                write(middle + names.shift * CELL, top - head + 0.06, class_name, **names.options)
            for row, (image, label) in enumerate(zip(images, labels, strict=True)):
                bottom = top - head - row * (CELL + GAP) - CELL
                picture(left, bottom, image, own=False)
                for column, pixels in enumerate(pictures[row, :shown]):
                    picture(left + CELL + APART + column * (CELL + GAP), bottom, pixels, own=column == int(label))
        note = "Green frame: the image's own class."
        write(MARGIN, 0.2 + explained, note, fontsize=SMALL_SIZE, color=MUTED_COLOUR, va="center")
        write(MARGIN, 0.08, "\n".join(legend), fontsize=SMALL_SIZE, va="bottom")
    return figure

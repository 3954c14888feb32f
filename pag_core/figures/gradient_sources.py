"""Target gradients of every source side by side (Fig. 7)."""

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pag_core.datasets.prepared import Dataset
from pag_core.figures.class_labels import class_labels
from pag_core.figures.contact_sheet import ContactSheet
from pag_core.figures.palette import (
    OWN_CLASS_COLOUR,
    OWN_CLASS_WIDTH,
    SIGNED_COLOURS,
    SMALL_SIZE,
    draw_picture,
    frame,
    shown_classes,
    style,
)
from pag_core.gradient_store.store import TargetGradients


def signed_picture(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient float [C, H, W] over its largest absolute value: [-1, 1] if grey, `0.5 + 0.5 g / max|g|` [0, 1] if RGB.

    A gradient that is zero everywhere gives 0 (grey) or 0.5 (RGB).
    """
    largest = gradient.abs().max()
    scaled = gradient / largest if largest > 0 else torch.zeros_like(gradient)
    return scaled if len(gradient) == 1 else 0.5 + 0.5 * scaled


def gradient_sources(dataset: Dataset, gradients: dict[str, TargetGradients], *, images: int) -> Figure:
    """Target gradients (Fig. 7) of the first `images` test images: a row per source, a column per target class.

    `gradients` maps a source's name to its target gradients of the test split, on the CPU. More than ten classes are cut to
    the first ten, and the title says so.
    """
    indices = torch.arange(min(images, len(dataset.splits["test"])))
    shown, remark = shown_classes(dataset.classes)
    classes = torch.arange(shown).expand(len(indices), shown)
    rows = {name: source(indices, classes) for name, source in gradients.items()}
    return gradient_sheet(dataset, indices, rows, title=f"Target gradients of each source{remark}")


def gradient_sheet(dataset: Dataset, indices: torch.Tensor, rows: dict[str, torch.Tensor], *, title: str) -> Figure:
    """Gradients for the test images `indices` int64 [B]: for each image a row per name, a column per class.

    `rows` maps a name to gradients float [B, classes shown, C, H, W]. Each picture has its own symmetric scale, since Eq. 5
    depends on directions only. The green frame marks the image's own class.
    """
    test = dataset.splits["test"]
    shown, _ = shown_classes(dataset.classes)
    labels = [int(label) for label in test.labels[indices]]
    classes = class_labels(dataset.class_names, [*range(shown), *labels])
    with style([*classes.texts, *rows]):
        sheet = ContactSheet(
            test.pixels(indices),
            labels,
            rows=list(rows),
            classes=classes,
            shown=shown,
            title=title,
            subtitle="g(x, c), the direction in which image x comes to look more like class c",
        )
        for row, gradients in enumerate(rows.values()):
            values = gradients.detach().float().cpu()
            for image, label in enumerate(labels):
                for column in range(shown):
                    _draw(sheet.cell(image, row, column), values[image, column], own=column == label)
        _explain(sheet, grey=dataset.image_shape[0] == 1)
    return sheet.figure


def _draw(axes: Axes, gradient: torch.Tensor, *, own: bool) -> None:
    picture = signed_picture(gradient)
    if len(picture) == 1:
        axes.imshow(picture[0].numpy(), cmap=SIGNED_COLOURS, vmin=-1, vmax=1, interpolation="nearest")
    else:
        draw_picture(axes, picture)
    frame(axes, *((OWN_CLASS_COLOUR, OWN_CLASS_WIDTH) if own else ()))


def _explain(sheet: ContactSheet, *, grey: bool) -> None:
    note = "Each gradient is scaled to its own largest value. Green frame: the image's own class."
    if not grey:
        sheet.footnote(note + " Mid-grey: no change.")
        return
    sheet.footnote(note)
    scale = ScalarMappable(Normalize(-1, 1), cmap=SIGNED_COLOURS)
    axes = sheet.strip()
    sheet.figure.colorbar(scale, cax=axes, orientation="horizontal")
    axes.set_xticks([])
    for x, text, side in ((-0.04, "darker", "right"), (1.04, "brighter", "left")):
        axes.text(x, 0.5, text, transform=axes.transAxes, ha=side, va="center", fontsize=SMALL_SIZE)

"""Targeted adversarial examples for every class, by the baseline's gradients and by the model's (Fig. 2)."""

import torch
from matplotlib.figure import Figure

from pag_core.evaluation.attacks import norm_label
from pag_core.figures.class_labels import class_labels
from pag_core.figures.contact_sheet import ContactSheet
from pag_core.figures.palette import (
    OWN_CLASS_COLOUR,
    OWN_CLASS_WIDTH,
    draw_picture,
    frame,
    shown_classes,
    style,
)


def targeted_pgd(
    images: torch.Tensor,
    labels: torch.Tensor,
    adversarial: dict[str, torch.Tensor],
    *,
    class_names: tuple[str, ...],
    norm: str,
    radius: str,
    steps: int,
) -> Figure:
    """Targeted large-radius adversarial images (Fig. 2): for each image a row per classifier, a column per target class.

    `images` float [B, C, H, W] in [0, 1], `labels` int64 [B]; `adversarial` maps a classifier's name to images
    [B, at least the classes shown, C, H, W] in [0, 1]. More than ten classes are cut to the first ten, as the title says.
    """
    shown, remark = shown_classes(len(class_names))
    owns = [int(label) for label in labels]
    classes = class_labels(class_names, [*range(shown), *owns])
    with style([*classes.texts, *adversarial]):
        sheet = ContactSheet(
            images,
            owns,
            rows=list(adversarial),
            classes=classes,
            shown=shown,
            title=f"Adversarial examples for each class by targeted PGD{remark}",
            subtitle=f"{norm_label(norm)} radius {radius}, {steps} steps from the image itself; one column per target class",
        )
        for row, pictures in enumerate(adversarial.values()):
            for image, own in enumerate(owns):
                for column in range(shown):
                    axes = sheet.cell(image, row, column)
                    draw_picture(axes, pictures[image, column])
                    if column == own:
                        frame(axes, OWN_CLASS_COLOUR, OWN_CLASS_WIDTH)
        sheet.footnote("Aligned gradients draw features of the target class. Green frame: the image's own class.")
    return sheet.figure

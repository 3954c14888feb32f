"""Does the label do anything? A model that ignores it turns Eq. 8 into noise, so this is measured before distilling."""

import math
import statistics
from typing import Any

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import NoisePredictor
from pag_core.errors import LabelIgnored
from pag_core.gradients.score_based import compared_classes, score_based_gradients
from pag_core.objective.cosine_alignment import cosine_similarity

# of the images, on which two draws are compared: all of a large split would take a quarter of the distillation's own time
DRAW_SAMPLE = 256
# standard errors by which the error with a wrong label must exceed that with the right one
MARGIN = 3


@torch.no_grad()
def label_effect(
    predictor: NoisePredictor, split: Split, *, timestep: int, batch_size: int, seed: int
) -> dict[str, float]:
    """Mean squared errors of the predicted noise on held-out images, and how well independent draws agree.

    `held_out_error_conditional`, `_unconditional` and `_wrong_class` (the class after the right one) share images and
    noise, so the last and the first are compared image by image: `standard_error_over_images` is that of their mean
    difference, and `standard_error_over_classes` that of `error_over_classes`. `draw_cosine` is the mean cosine between
    the gradients of Eq. 8 from two independent draws, over the first `draw_images` of the images and `compared_classes`.
    `relative_difference` is |eps_c - eps_none| / |eps_none|: the smaller, the more precision Eq. 8 needs.
    """
    classes, device = predictor.no_class, predictor.device
    data = split.to(device)
    # a stream for each, so that no noise depends on the size of a batch
    streams = [generator(device, seed, f"label effect, {draw} draw") for draw in ("first", "second")]
    names = ("conditional", "unconditional", "wrong_class")
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    difference = magnitude = 0.0
    cosines: list[torch.Tensor] = []
    for start in range(0, len(data), batch_size):
        images, labels = data.pixels(slice(start, start + batch_size)), data.labels[start : start + batch_size]
        first, second = (torch.randn(images.shape, generator=draws, device=device) for draws in streams)
        noised = predictor.noised(images, timestep, first)
        choices = (labels, torch.full_like(labels, classes), (labels + 1) % classes)
        predicted = [predictor.predicted_noise(noised, timestep, choice) for choice in choices]
        for name, noise in zip(names, predicted, strict=True):
            parts[name].append((noise - first).double().square().flatten(1).mean(1))
        difference += (predicted[0] - predicted[1]).flatten(1).norm(dim=1).sum().item()
        magnitude += predicted[1].flatten(1).norm(dim=1).sum().item()
        if (compared := min(len(images), DRAW_SAMPLE - start)) > 0:
            options: dict[str, Any] = {"timestep": timestep, "classes": compared_classes(labels[:compared], classes)}
            pair = [
                score_based_gradients(predictor, images[:compared], noise=noise[:compared], **options)
                for noise in (first, second)
            ]
            cosines.append(cosine_similarity(*pair).mean(1))
    of_draws = torch.cat(cosines)
    errors = {name: torch.cat(parts[name]).cpu() for name in names}
    differences = errors["wrong_class"] - errors["conditional"]
    return {
        **{f"held_out_error_{name}": error.mean().item() for name, error in errors.items()},
        "standard_error_over_images": float(differences.std()) / math.sqrt(len(differences)),
        "standard_error_over_classes": error_over_classes(differences, data.labels.cpu()),
        "draw_cosine": of_draws.mean().item(),
        "draw_images": len(of_draws),
        "relative_difference": difference / magnitude,
        "images": len(data),
        "timestep": timestep,
    }


def error_over_classes(differences: torch.Tensor, labels: torch.Tensor) -> float:
    """The standard error of the mean of `differences` float64 [N], with the classes of `labels` int64 [N] as clusters.

    A label can suit a class by chance, whatever it was trained on, and all images of the class then share it: more images
    do not tell it from training. So classes are what was drawn (the cluster-robust error of Liang and Zeger, 1986). Not a
    number where all images are of one class.
    """
    found, cluster = labels.unique(return_inverse=True)
    deviations = differences - differences.mean()
    by_class = deviations.new_zeros(len(found)).index_add(0, cluster, deviations)
    factor = len(found) / (len(found) - 1) if len(found) > 1 else math.nan
    return math.sqrt(factor * float(by_class.square().sum())) / len(differences)


def over_levels(levels: list[dict[str, float]]) -> dict[str, Any]:
    """What was measured of several noise levels in one: means, of the lowest cosine the lowest, and every `timestep`.

    Counts of images are the same at each level. A single level is given back as it is.
    """
    if len(levels) == 1:
        return levels[0]
    summary: dict[str, Any] = {}
    for name, first in levels[0].items():
        values = [level[name] for level in levels]
        if name == "timestep":
            summary[name] = values
        elif name.endswith("images"):
            summary[name] = first
        else:
            summary[name] = min(values) if name.endswith("_min") else statistics.mean(values)
    return summary


def require_label_effect(measured: dict[str, float], place: str) -> None:
    """Raise LabelIgnored unless the error is lowest with the right label, higher without one and highest with a wrong one.

    The last must exceed the first by `MARGIN` standard errors, over images and over classes. Labels that suit classes by
    chance pass at most as often as Student's t of C - 1 degrees of freedom exceeds it: .0075 of ten classes, .02 of five,
    .10 of two.
    """
    right, none, wrong = (
        measured[f"held_out_error_{name}"] for name in ("conditional", "unconditional", "wrong_class")
    )
    over_images, over_classes = (measured[f"standard_error_over_{units}"] for units in ("images", "classes"))
    clear = wrong - right > MARGIN * over_images and wrong - right > MARGIN * over_classes
    if not (right < none < wrong and clear):
        raise LabelIgnored(
            f"{place} does not use its label: held-out error {right:.5f} with the right label, {none:.5f} without one, "
            f"{wrong:.5f} with a wrong one. Each should be below the next, and the last less the first, {wrong - right:.5f}, "
            f"more than {MARGIN} standard errors, which are {over_images:.5f} over images and {over_classes:.5f} over classes. "
            "Gradients from it would be noise: train longer (diffusion.steps), or at another noise level (sbg.timestep, "
            "diffusion.timestep_window); a small effect is seen on more validation images (prepare.validation_fraction). Other "
            "sources need no diffusion model (source: cm)"
        )

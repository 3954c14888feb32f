"""Checks that robustness is not an illusion of masked gradients (Athalye et al., 2018; Carlini et al., 2019).

Accuracy must fall to zero as the radius grows; images that fool the vanilla baseline must fool the model less often than
a white-box attack does; and the same holds for a black-box attack (Square).
"""

import functools
from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import nn

from pag_core.checkpoint import RunFolder
from pag_core.evaluation.fitness import accuracy, correct, require_fit_for_attack
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images
from pag_core.evaluation.units import Unit, finished_units
from pag_core.params import MaskingParams, radius_value
from pag_core.randomness import derived_seed


def _square_accuracy(
    classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, norm: str, radius: str, queries: int, seed: int
) -> float:
    attack = SquareAttack(
        classifier, p_init=0.8, n_queries=queries, eps=radius_value(radius), norm=norm, n_restarts=1, verbose=False,
        seed=derived_seed(seed, "square", norm, radius) % 2**31, device=images.device, resc_schedule=False,
    )  # fmt: skip
    standing = correct(classifier, images, labels)
    if not standing.any():
        return 0.0
    fooled = attack.perturb(images[standing], labels[standing])
    return int(correct(classifier, fooled, labels[standing]).sum()) / len(images)


def masking_checks(
    classifier: nn.Module,
    baseline: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    params: MaskingParams,
    seed: int,
    folder: RunFolder,
    processes: int = 1,
) -> dict[str, Any]:
    """PGD accuracy against radius of model and baseline, transfer and Square at `transfer_radii`, and the verdicts.

    A verdict is true where the sign of masking is absent: `reaches_zero` (every norm's curve ends at 0),
    `transfer_weaker` and `square_weaker` (than white-box PGD, at every radius). Accuracies are fractions.
    """
    require_fit_for_attack(classifier, images, labels)

    def pgd(network: nn.Module, norm: str, radius: str) -> dict[str, Any]:
        return pgd_accuracy(network, images, labels, radii={norm: [radius]}, steps=params.steps, seed=seed)

    def transfer(norm: str, radius: str) -> dict[str, Any]:
        moved = pgd_images(baseline, images, labels, norm=norm, radius=radius, steps=params.steps, seed=seed)
        return {f"{norm} {radius}": accuracy(classifier, moved, labels)}

    def square(norm: str, radius: str) -> dict[str, Any]:
        accuracy = _square_accuracy(classifier, images, labels, norm, radius, params.square_queries, seed)
        return {f"{norm} {radius}": accuracy}

    curve = [(norm, radius) for norm, radii in params.radii.items() for radius in radii]
    chosen = [(norm, radius) for norm, radii in params.transfer_radii.items() for radius in radii]
    groups: dict[str, list[Unit]] = {
        "model": [functools.partial(pgd, classifier, *setting) for setting in curve],
        "baseline": [functools.partial(pgd, baseline, *setting) for setting in curve],
        "white_box": [functools.partial(pgd, classifier, *setting) for setting in chosen],
        "transfer": [functools.partial(transfer, *setting) for setting in chosen],
        "square": [functools.partial(square, *setting) for setting in chosen],
    }
    work = {f"{group}-{number}": unit for group, units in groups.items() for number, unit in enumerate(units)}
    done = finished_units(folder, work, processes=processes, what="masking checks")
    results: dict[str, dict[str, float]] = {
        group: {key: value for number in range(len(units)) for key, value in done[f"{group}-{number}"].items()}
        for group, units in groups.items()
    }
    return {
        "images": len(images),
        "pgd_steps": params.steps,
        "square_queries": params.square_queries,
        "clean": {
            who: accuracy(network, images, labels) for who, network in (("model", classifier), ("baseline", baseline))
        },
        "curve": {who: results[who] for who in ("model", "baseline")},
        **{group: results[group] for group in ("white_box", "transfer", "square")},
        "verdict": masking_verdict(
            results, [f"{norm} {max(radii, key=radius_value)}" for norm, radii in params.radii.items()]
        ),
    }


def masking_verdict(accuracies: dict[str, dict[str, float]], ends: list[str]) -> dict[str, bool]:
    """The verdicts from accuracies by group (`model`, `white_box`, `transfer`, `square`) and the largest radii `ends`."""
    white_box = accuracies["white_box"]
    return {
        "reaches_zero": all(accuracies["model"][end] == 0 for end in ends),
        "transfer_weaker": all(accuracies["transfer"][key] >= value for key, value in white_box.items()),
        "square_weaker": all(accuracies["square"][key] >= value for key, value in white_box.items()),
    }

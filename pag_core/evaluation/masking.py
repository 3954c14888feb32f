"""Checks that robustness is not an illusion of masked gradients (Athalye et al., 2018; Carlini et al., 2019).

Accuracy must fall to zero as the radius grows; images that fool the vanilla baseline must fool the model less often than
a white-box attack does; and the same holds for a black-box attack (Square).
"""

from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import nn

from pag_core.evaluation.fitness import correct, require_fit_for_attack
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images
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
    return correct(classifier, fooled, labels[standing]).float().sum().item() / len(images)


def masking_checks(
    classifier: nn.Module,
    baseline: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    params: MaskingParams,
    seed: int,
) -> dict[str, Any]:
    """PGD accuracy against radius of model and baseline, transfer and Square at `transfer_radii`, and the verdicts.

    A verdict is true where the sign of masking is absent: `reaches_zero` (every norm's curve ends at 0),
    `transfer_weaker` and `square_weaker` (than white-box PGD, at every radius). Accuracies are fractions.
    """
    require_fit_for_attack(classifier, images, labels)
    curves = {
        name: pgd_accuracy(network, images, labels, radii=params.radii, steps=params.steps, seed=seed)
        for name, network in (("model", classifier), ("baseline", baseline))
    }
    white_box = pgd_accuracy(classifier, images, labels, radii=params.transfer_radii, steps=params.steps, seed=seed)
    transfer, square = {}, {}
    for norm, radii in params.transfer_radii.items():
        for radius in radii:
            moved = pgd_images(baseline, images, labels, norm=norm, radius=radius, steps=params.steps, seed=seed)
            transfer[f"{norm} {radius}"] = correct(classifier, moved, labels).float().mean().item()
            square[f"{norm} {radius}"] = _square_accuracy(
                classifier, images, labels, norm, radius, params.square_queries, seed
            )
    ends = [max(radii, key=radius_value) for radii in params.radii.values()]
    return {
        "images": len(images),
        "pgd_steps": params.steps,
        "square_queries": params.square_queries,
        "curve": curves,
        "white_box": white_box,
        "transfer": transfer,
        "square": square,
        "verdict": {
            "reaches_zero": all(
                curves["model"][f"{norm} {end}"] == 0 for norm, end in zip(params.radii, ends, strict=True)
            ),
            "transfer_weaker": all(transfer[key] >= white_box[key] for key in white_box),
            "square_weaker": all(square[key] >= white_box[key] for key in white_box),
        },
    }

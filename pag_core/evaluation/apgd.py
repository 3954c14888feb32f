"""Auto-PGD (Croce and Hein, 2020) alone: the white-box part of AutoAttack, with few steps.

Cross-entropy alone overestimates models whose logits were aligned with target gradients, so the targeted loss follows it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import nn

from pag_core.compute.randomness import derived_seed
from pag_core.evaluation.preconditions import batches_of, correct, require_fit_for_attack
from pag_core.params.radii import radius_value


def robust_accuracy(
    classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, attacks: Sequence[Any], *, batch_size: int
) -> float:
    """The accuracy (fraction) left after every attack in turn, each on the images that still stand, `batch_size` at once.

    An attack draws anew for each batch, so that accuracies of several batches depend on their size.
    """
    robust = correct(classifier, images, labels, batch_size=batch_size)
    for attack in attacks:
        left = torch.nonzero(robust).flatten()
        for batch in batches_of(len(left), batch_size):
            rows = left[batch]
            adversarial = attack.perturb(images[rows], labels[rows])
            robust[rows] = correct(classifier, adversarial, labels[rows], batch_size=batch_size)
    return int(robust.sum()) / len(images)


def apgd_attacks(
    classifier: nn.Module, *, norm: str, radius: str, classes: int, steps: int, seed: int, device: torch.device
) -> list[Any]:
    """APGD on cross-entropy, then towards each of up to nine other classes if there are at least four classes."""
    options = {
        "norm": norm,
        "eps": radius_value(radius),
        "n_iter": steps,
        "n_restarts": 1,
        "seed": derived_seed(seed, "apgd", norm, radius) % 2**31,
        "device": device,
        "logger": logging.getLogger("auto-attack"),
    }
    attacks = [APGDAttack(classifier, loss="ce", **options)]
    if classes > 3:
        attacks.append(APGDAttack_targeted(classifier, n_target_classes=min(9, classes - 1), **options))
    return attacks


def apgd_accuracy(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    radii: Mapping[Any, Sequence[str]],
    classes: int,
    steps: int,
    seed: int,
    batch_size: int,
) -> dict[str, float]:
    """Accuracy (fraction) under APGD at each `NORM RADIUS`, in batches: a fast proxy, an upper bound on AutoAttack's.

    Raises EvaluationRefused for a model that must not be evaluated.
    """
    require_fit_for_attack(classifier, images, labels, batch_size=batch_size)
    settings = [(norm, radius) for norm, chosen in radii.items() for radius in chosen]
    attacks = {
        f"{norm} {radius}": apgd_attacks(
            classifier, norm=norm, radius=radius, classes=classes, steps=steps, seed=seed, device=images.device
        )
        for norm, radius in settings
    }
    return {
        name: robust_accuracy(classifier, images, labels, several, batch_size=batch_size)
        for name, several in attacks.items()
    }

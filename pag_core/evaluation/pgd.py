"""Projected gradient descent (Eq. 1) by Foolbox: bounded attacks, targeted images at a large radius, a radius curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from foolbox import criteria
from foolbox.attacks import L2ProjectedGradientDescentAttack, LinfProjectedGradientDescentAttack
from foolbox.models import PyTorchModel
from torch import nn

from pag_core.compute.randomness import seed_global_streams
from pag_core.evaluation.preconditions import accuracy, batches_of, require_fit_for_attack
from pag_core.params.radii import radius_value

ATTACKS: dict[str, Any] = {"L2": L2ProjectedGradientDescentAttack, "Linf": LinfProjectedGradientDescentAttack}


def foolbox_model(classifier: nn.Module, device: torch.device) -> PyTorchModel:
    """The classifier as Foolbox takes it: images in [0, 1], no preprocessing."""
    return PyTorchModel(classifier, bounds=(0, 1), device=device)


def _pgd(norm: str, steps: int, *, random_start: bool = True) -> Any:
    # 2.5 radii in all, so that a path can cross the ball and come back
    return ATTACKS[norm](steps=steps, rel_stepsize=2.5 / steps, random_start=random_start)


def pgd_images(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    radius: str,
    steps: int,
    seed: int,
    batch_size: int,
) -> torch.Tensor:
    """Adversarial images of untargeted PGD from a random start within `radius` (as in params.yaml): [B, C, H, W].

    Each batch of `batch_size` has a stream of draws of its own.
    """
    parts = []
    for rows in batches_of(len(images), batch_size):
        seed_global_streams(seed, "pgd", norm, radius, rows.start)
        attack, model = _pgd(norm, steps), foolbox_model(classifier, images.device)
        _, clipped, _ = attack(model, images[rows], labels[rows], epsilons=radius_value(radius))
        parts.append(clipped.detach())
    return torch.cat(parts)


def pgd_accuracy(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    radii: Mapping[Any, Sequence[str]],
    steps: int,
    seed: int,
    batch_size: int,
) -> dict[str, float]:
    """Accuracy (fraction) under untargeted PGD at each `NORM RADIUS`: a fast proxy, an upper bound on robustness."""
    require_fit_for_attack(classifier, images, labels, batch_size=batch_size)
    adversarial = {
        f"{norm} {radius}": pgd_images(
            classifier, images, labels, norm=norm, radius=radius, steps=steps, seed=seed, batch_size=batch_size
        )
        for norm, chosen in radii.items()
        for radius in chosen
    }
    return {
        name: accuracy(classifier, examples, labels, batch_size=batch_size) for name, examples in adversarial.items()
    }


def targeted_images(
    classifier: nn.Module,
    images: torch.Tensor,
    classes: int,
    *,
    norm: str,
    radius: float,
    steps: int,
    batch_size: int,
) -> torch.Tensor:
    """Each image attacked towards every class by targeted PGD from the image itself (Fig. 2): [B, classes, C, H, W].

    At most `batch_size` are attacked at once; nothing is drawn, so that it changes the rounding of sums alone.
    """
    model, parts = foolbox_model(classifier, images.device), []
    pairs = torch.arange(len(images) * classes, device=images.device)
    for rows in batches_of(len(pairs), batch_size):
        criterion = criteria.TargetedMisclassification(pairs[rows] % classes)
        attack = _pgd(norm, steps, random_start=False)
        _, clipped, _ = attack(model, images[pairs[rows] // classes], criterion, epsilons=radius)
        parts.append(clipped.detach())
    adversarial: torch.Tensor = torch.cat(parts).unflatten(0, (len(images), classes))
    return adversarial

"""Checks that robustness is not an illusion of masked gradients (Athalye et al., 2018; Carlini et al., 2019).

Accuracy must fall to zero as the radius grows; images that fool the vanilla baseline must fool the model less often than
a white-box attack does; and the same holds for a black-box attack (Square). The white-box attack is APGD on two losses:
plain PGD on cross-entropy is weak enough for Square to match it on models that mask nothing.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import nn

from pag_core.compute.randomness import derived_seed
from pag_core.evaluation.apgd import apgd_accuracy, robust_accuracy
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images
from pag_core.evaluation.preconditions import accuracy, require_fit_for_attack
from pag_core.evaluation.units import Unit, finished_units
from pag_core.params.measurements import MaskingParams
from pag_core.params.radii import radius_value
from pag_core.pipeline.checkpoint import RunFolder


@dataclass(frozen=True)
class _Attacks:
    """The attacks on `images` [B, C, H, W] in [0, 1], each by norm and radius: a metric's name and an accuracy."""

    classifier: nn.Module
    baseline: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    params: MaskingParams
    seed: int

    def model(self, norm: str, radius: str) -> dict[str, float]:
        return self._pgd(self.classifier, norm, radius)

    def vanilla(self, norm: str, radius: str) -> dict[str, float]:
        return self._pgd(self.baseline, norm, radius)

    def _pgd(self, network: nn.Module, norm: str, radius: str) -> dict[str, float]:
        radii = {norm: [radius]}
        return pgd_accuracy(
            network,
            self.images,
            self.labels,
            radii=radii,
            steps=self.params.steps,
            seed=self.seed,
            batch_size=self.params.batch_size,
        )

    def transfer(self, norm: str, radius: str) -> dict[str, float]:
        """The model on images that PGD made on the baseline."""
        adversarial = pgd_images(
            self.baseline,
            self.images,
            self.labels,
            norm=norm,
            radius=radius,
            steps=self.params.steps,
            seed=self.seed,
            batch_size=self.params.batch_size,
        )
        return {f"{norm} {radius}": self._accuracy(self.classifier, adversarial)}

    def clean(self) -> dict[str, float]:
        """Of model and baseline on the images as they are."""
        networks = {"model": self.classifier, "baseline": self.baseline}
        return {who: self._accuracy(network, self.images) for who, network in networks.items()}

    def _accuracy(self, network: nn.Module, images: torch.Tensor) -> float:
        return accuracy(network, images, self.labels, batch_size=self.params.batch_size)

    def white_box(self, norm: str, radius: str) -> dict[str, float]:
        return apgd_accuracy(
            self.classifier,
            self.images,
            self.labels,
            radii={norm: [radius]},
            classes=self.classes,
            steps=self.params.steps,
            seed=self.seed,
            batch_size=self.params.batch_size,
        )

    def square(self, norm: str, radius: str) -> dict[str, float]:
        """The black-box Square attack, alone."""
        attack = SquareAttack(
            self.classifier,
            norm=norm,
            eps=radius_value(radius),
            n_queries=self.params.square_queries,
            n_restarts=1,
            p_init=0.8,
            resc_schedule=False,
            seed=derived_seed(self.seed, "square", norm, radius) % 2**31,
            device=self.images.device,
        )
        left = robust_accuracy(self.classifier, self.images, self.labels, [attack], batch_size=self.params.batch_size)
        return {f"{norm} {radius}": left}


def masking_checks(
    classifier: nn.Module,
    baseline: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
    params: MaskingParams,
    seed: int,
    folder: RunFolder,
    processes: int | None = 1,
) -> dict[str, Any]:
    """PGD accuracy against radius of model and baseline, transfer and Square at `transfer_radii`, and the verdicts.

    A verdict is true where the sign of masking is absent: `reaches_zero` (every norm's curve ends at 0),
    `transfer_weaker` and `square_weaker` (than white-box APGD, at every radius). Accuracies are fractions.
    """
    require_fit_for_attack(classifier, images, labels, batch_size=params.batch_size)
    attacks = _Attacks(classifier, baseline, images, labels, classes, params, seed)
    curve = [(norm, radius) for norm, radii in params.radii.items() for radius in radii]
    chosen = [(norm, radius) for norm, radii in params.transfer_radii.items() for radius in radii]
    groups: dict[str, list[Unit]] = {
        "white_box": [functools.partial(attacks.white_box, *setting) for setting in chosen],
        "square": [functools.partial(attacks.square, *setting) for setting in chosen],
        "transfer": [functools.partial(attacks.transfer, *setting) for setting in chosen],
        "model": [functools.partial(attacks.model, *setting) for setting in curve],
        "baseline": [functools.partial(attacks.vanilla, *setting) for setting in curve],
    }
    work = {f"{group}-{number}": unit for group, units in groups.items() for number, unit in enumerate(units)}
    done = finished_units(folder, work, processes=processes, what="masking checks")
    results: dict[str, dict[str, float]] = {
        group: {key: value for number in range(len(units)) for key, value in done[f"{group}-{number}"].items()}
        for group, units in groups.items()
    }
    ends = [f"{norm} {max(radii, key=radius_value)}" for norm, radii in params.radii.items()]
    return {
        "images": len(images),
        "pgd_steps": params.steps,
        "square_queries": params.square_queries,
        "clean": attacks.clean(),
        "curve": {who: results[who] for who in ("model", "baseline")},
        **{group: results[group] for group in ("white_box", "transfer", "square")},
        "verdict": masking_verdict(results, ends),
    }


def masking_verdict(accuracies: dict[str, dict[str, float]], ends: list[str]) -> dict[str, bool]:
    """The verdicts from accuracies by group (`model`, `white_box`, `transfer`, `square`) and the largest radii `ends`."""
    white_box = accuracies["white_box"]
    return {
        "reaches_zero": all(accuracies["model"][end] == 0 for end in ends),
        "transfer_weaker": all(accuracies["transfer"][key] >= value for key, value in white_box.items()),
        "square_weaker": all(accuracies["square"][key] >= value for key, value in white_box.items()),
    }

"""The seven Foolbox attacks of Table 6, over a grid of radii.

The paper does not state the radii of its table, so no cell here is that setting: each attack is reported over the whole
grid of its norm, at `None` (misclassified at any distance) and by the median distance it needs.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from foolbox import attacks, distances
from torch import nn

from pag_core.compute.randomness import derived_seed, seed_global_streams
from pag_core.evaluation.pgd import foolbox_model
from pag_core.evaluation.preconditions import accuracy, batches_of, correct, require_fit_for_attack
from pag_core.evaluation.units import Unit, finished_units
from pag_core.params.measurements import FoolboxParams
from pag_core.params.radii import radius_value
from pag_core.pipeline.checkpoint import RunFolder

DISTANCES = {"L0": distances.l0, "L1": distances.l1, "L2": distances.l2}


@dataclass(frozen=True)
class FromTwoStarts:
    """The closer of two results of `attack`, which begins at the image, and at what the attack `start` makes of it.

    From the image alone FMN in L1 fails on many images, also at any distance, and a failure would count as robustness.
    """

    attack: Any
    start: Any
    distance: Any

    def __call__(
        self, model: Any, images: torch.Tensor, labels: torch.Tensor, *, epsilons: None
    ) -> tuple[torch.Tensor, None, None]:
        """The images [B, C, H, W] as they were moved, in the place where Foolbox has them; the rest is not told."""
        found = self.attack.run(model, images, labels)
        begun = self.start.run(model, images, labels)
        rows = torch.arange(len(images), device=images.device)
        # the attack begins only where all fool the model, and in a smaller batch the one or other may not
        while len(rows) and not (fooled := model(begun[rows]).argmax(1) != labels[rows]).all():
            rows = rows[fooled]
        if len(rows):
            adversarial = self.attack.run(model, images[rows], labels[rows], starting_points=begun[rows])
            lost = model(found[rows]).argmax(1) == labels[rows]
            closer = self.distance(images[rows], adversarial) < self.distance(images[rows], found[rows])
            better = (model(adversarial).argmax(1) != labels[rows]) & (lost | closer)
            found[rows[better]] = adversarial[better]
        return found, None, None


def table_6_attacks(params: FoolboxParams) -> dict[str, tuple[Literal["L0", "L1", "L2"], Any]]:
    """Name: (norm, attack) in the order of Table 6.

    EAD runs `ead_steps` steps of its 9 binary searches, not 10,000; random salt and pepper is tried several times; FMN in L1
    begins at the image and at blended noise.
    """
    steps, l2 = params.search_steps, distances.l2
    salt_and_pepper = attacks.SaltAndPepperNoiseAttack(steps=steps).repeat(params.salt_and_pepper_repeats)
    blended = attacks.LinearSearchBlendedUniformNoiseAttack(distance=l2, directions=steps, steps=steps)
    return {
        "SaltAndPepperNoiseAttack": ("L2", salt_and_pepper),
        "BinarySearchContrastReductionAttack": ("L2", attacks.BinarySearchContrastReductionAttack(distance=l2)),
        "GaussianBlurAttack": ("L2", attacks.GaussianBlurAttack(distance=l2, steps=steps)),
        "LinearSearchBlendedUniformNoiseAttack": ("L2", blended),
        "L0FMNAttack": ("L0", attacks.L0FMNAttack()),
        "L1FMNAttack": ("L1", FromTwoStarts(attacks.L1FMNAttack(), blended, distances.l1)),
        "EADAttack": ("L1", attacks.EADAttack(steps=params.ead_steps)),
    }


def smallest_distances(
    classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, norm: str, attack: Any, seed: int
) -> list[float | None]:
    """The distance at which `attack` fools the model for each image: 0 if it is wrong anyway, None if it is never fooled.

    All images are one batch. The attack runs unbounded (`epsilons=None`) and its distance is measured on what it returns: a
    result that was clipped to a radius would not be the attack's own.
    """
    seed_global_streams(seed, "foolbox")
    raw, _, _ = attack(foolbox_model(classifier, images.device), images, labels, epsilons=None)
    raw = raw.detach()
    fooled = ~correct(classifier, raw, labels, batch_size=len(images))
    wrong = ~correct(classifier, images, labels, batch_size=len(images))
    reached = DISTANCES[norm](images, raw)
    return [
        0.0 if errs else (round(float(distance), 6) if success else None)
        for errs, success, distance in zip(wrong, fooled, reached, strict=True)
    ]


def _median(values: list[float | None]) -> float | None:
    """The median over images with never-fooled ones as infinitely far; None if it is infinite."""
    ordered = sorted(float("inf") if value is None else value for value in values)
    middle = (
        ordered[len(ordered) // 2]
        if len(ordered) % 2
        else (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    )
    return None if middle == float("inf") else round(middle, 6)


def accuracy_at(values: list[float | None], radius: float | None) -> float:
    """The fraction of images not fooled within `radius`, or at any distance (None)."""
    limit = float("inf") if radius is None else radius
    return sum(value is None or value > limit for value in values) / len(values)


def run_foolbox(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    params: FoolboxParams,
    seed: int,
    folder: RunFolder,
    processes: int | None = 1,
    who: str,
) -> dict[str, Any]:
    """Every attack of Table 6: accuracy (fraction) at each radius of its norm, at `None`, and `median_distance`.

    Finished attacks are kept in `folder`. Raises EvaluationRefused for a model that must not be evaluated.
    """
    require_fit_for_attack(classifier, images, labels, batch_size=params.batch_size)
    suite = table_6_attacks(params)

    def distances_of(name: str) -> dict[str, Any]:
        norm, attack = suite[name]
        found: list[float | None] = []
        for rows in batches_of(len(images), params.batch_size):
            stream = derived_seed(seed, "foolbox", name, rows.start)
            found += smallest_distances(classifier, images[rows], labels[rows], norm=norm, attack=attack, seed=stream)
        return {"distances": found}

    work: dict[str, Unit] = {name: functools.partial(distances_of, name) for name in suite}
    done = finished_units(folder, work, processes=processes, what=f"Foolbox on the {who}")
    results: dict[str, Any] = {"clean": accuracy(classifier, images, labels, batch_size=params.batch_size)}
    for name, (norm, _) in suite.items():
        values = done[name]["distances"]
        results[name] = {
            **{f"{norm} {label}": accuracy_at(values, radius_value(label)) for label in params.grid[norm]},
            "None": accuracy_at(values, None),
            "median_distance": _median(values),
        }
    return results


def headline(details: dict[str, Any]) -> dict[str, float]:
    """For `model` and `baseline` (from `run_foolbox`) the mean over attacks of each one's mean over its grid of radii."""
    means = {}
    for who in ("model", "baseline"):
        grids = [
            [accuracy for setting, accuracy in cells.items() if " " in setting]
            for name, cells in details[who].items()
            if name != "clean"
        ]
        means[who] = round(sum(sum(grid) / len(grid) for grid in grids) / len(grids), 6)
    return {"Foolbox": means["model"], "Foolbox of baseline": means["baseline"]}

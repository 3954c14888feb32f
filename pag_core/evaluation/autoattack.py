"""AutoAttack (Croce and Hein, 2020), standard or plus, over the test subset, in shards that survive a killed run."""

import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack.autoattack import AutoAttack
from torch import nn
from tqdm import tqdm

from pag_core.compute.randomness import derived_seed, seed_global_streams
from pag_core.errors import EvaluationRefused
from pag_core.evaluation.preconditions import correct, require_fit_for_attack
from pag_core.evaluation.units import Unit, finished_units
from pag_core.params.measurements import AutoAttackParams
from pag_core.params.radii import radius_value
from pag_core.pipeline.checkpoint import RunFolder

LOGGER = "auto-attack"
AFTER_ATTACK = re.compile(r"robust accuracy after ([A-Z-]+): ([0-9.]+)%")
# a perturbation may exceed its radius by the rounding of float32 only
TOLERANCE = 1e-5
# the share of a shard's images whose class may change with the batch size, as it does near a boundary where kernels sum in
# another order; one image always may. A model beyond it gives no answer that could be attacked
DISAGREEMENT_LIMIT = 0.01


@contextmanager
def _captured_log(what: str) -> Iterator[list[logging.LogRecord]]:
    """The records of AutoAttack's logger, the only place where it reports per-attack numbers and warnings.

    Each per-attack number is printed as it comes: a shard takes minutes on a slow machine.
    """
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            if found := AFTER_ATTACK.search(record.getMessage()):
                tqdm.write(f"{what}: {found[2]} % robust after {found[1]}")

    logger, handler = logging.getLogger(LOGGER), Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _attack(
    classifier: nn.Module, norm: str, radius: float, classes: int, version: str, seed: int, device: torch.device
) -> AutoAttack:
    attack = AutoAttack(classifier, norm=norm, eps=radius, seed=seed, device=device, version=version)
    targets = classes - 1
    if targets < attack.fab.n_target_classes:
        # both versions assume ten classes and would index past the end with fewer
        attack.fab.n_target_classes = targets
        attack.apgd_targeted.n_target_classes = min(targets, attack.apgd_targeted.n_target_classes)
        skipped = too_few_classes(classes)
        attack.attacks_to_run = [name for name in attack.attacks_to_run if name not in skipped]
    return attack


def too_few_classes(classes: int) -> tuple[str, ...]:
    """The attacks that cannot run: the loss of APGD-T needs the third and fourth largest logits, that of APGD-DLR the third."""
    return tuple(name for name, needed in (("apgd-t", 4), ("apgd-dlr", 3)) if classes < needed)


def attack_name(version: str, classes: int) -> str:
    """The version, `standard` or `plus`, and what differs from it where the dataset has fewer than ten classes."""
    if classes >= 10:
        return version
    skipped = [name.upper() for name in too_few_classes(classes) if name != "apgd-dlr" or version == "plus"]
    without = f", without {' and '.join(skipped)}" if skipped else ""
    return f"non-{version}: {classes - 1} target classes{without}"


def shard_seed(seed: int, norm: str, label: str, start: int) -> int:
    """The seed of the shard that begins with image `start`, from the experiment's seed and a setting's norm and radius."""
    return derived_seed(seed, "autoattack", norm, label, start)


def library_seed(seed: int) -> int:
    """What AutoAttack itself is given of a shard's seed; its attacks seed their draws with it."""
    return seed % 2**31


def recount_size(images: int, batch_size: int) -> int | None:
    """A batch size at which each of `images` has another number of images beside it than at `batch_size`; None for one image.

    About half of `batch_size`; larger only where no smaller one will do, as for three images in batches of two.
    """
    smaller = sorted(range(1, batch_size), key=lambda size: abs(size - min(batch_size, images) / 2))
    first = _beside_each(images, batch_size)
    sizes = (*smaller, *range(batch_size + 1, images + 1))
    return next((size for size in sizes if not (first == _beside_each(images, size)).any()), None)


def _beside_each(images: int, batch_size: int) -> torch.Tensor:
    """The size of the batch of each image: int64 [images]."""
    numbers = torch.arange(images)
    return (images - numbers // batch_size * batch_size).clamp(max=batch_size)


def attack_shard(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    radius: float,
    classes: int,
    version: str,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Attack one shard: counts of images, and of those robust after each attack in turn; which are correct and robust.

    `clean` and `robust` have a 1 for each image that is classified correctly as it is and under attack, and a 0 for others.
    `robust` images are those that the library left unchanged and that are classified correctly again, in batches of another
    size; `disagreements` are images about which the two differ, None for one image, which has no other size of its batch.
    Distance and range of the images are checked too.
    Raises EvaluationRefused if they differ about more than DISAGREEMENT_LIMIT of the images and more than one, and for images
    beyond the radius or [0, 1].
    """
    seed_global_streams(seed, "autoattack")
    attack = _attack(classifier, norm, radius, classes, version, library_seed(seed), images.device)
    with _captured_log(f"{norm} {radius:g}") as records:
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
    after: dict[str, int] = {}
    clean = correct(classifier, images, labels, batch_size=batch_size)
    remaining = int(clean.sum())
    stated = {m[1].lower(): m[2] for m in (AFTER_ATTACK.search(record.getMessage()) for record in records) if m}
    for name in attack.attacks_to_run:
        # once no image is left the library skips the other attacks
        remaining = round(float(stated[name]) / 100 * len(images)) if name in stated else remaining
        after[name] = remaining
    # the library gives counts only; the images that it considers robust are those that it left unchanged
    own = clean & (adversarial == images).flatten(1).all(1)
    other_size = recount_size(len(images), batch_size)
    again = correct(classifier, adversarial, labels, batch_size=other_size or batch_size)
    disagreements = max(int((own != again).sum()), abs(int(own.sum()) - remaining))
    if disagreements > max(1, DISAGREEMENT_LIMIT * len(images)):
        raise EvaluationRefused(
            f"at {norm} {radius:g} AutoAttack and a recount differ on {disagreements} of {len(images)} images, more than "
            f"{DISAGREEMENT_LIMIT:.0%}: the model gives other answers in batches of {min(batch_size, len(images))} than of "
            f"{other_size}, so none is an image's own. Look for a layer that mixes the images of a batch, and replace it"
        )
    _require_within(adversarial - images, norm, radius)
    if adversarial.min() < 0 or adversarial.max() > 1:
        raise EvaluationRefused(
            f"AutoAttack at {norm} {radius:g} returned images from {adversarial.min():g} to {adversarial.max():g}, outside "
            "[0, 1]: a fault of the library or its version, so none of its results is kept"
        )
    warnings = sorted({record.getMessage() for record in records if record.levelno >= logging.WARNING})
    return {
        "images": len(images), "clean": _verdicts(clean), "after": after, "robust": _verdicts(own & again),
        "disagreements": None if other_size is None else disagreements, "warnings": warnings,
    }  # fmt: skip


def _verdicts(robust: torch.Tensor) -> str:
    return "".join("1" if image else "0" for image in robust.tolist())


def _require_within(perturbation: torch.Tensor, norm: str, radius: float) -> None:
    order = {"L1": 1.0, "L2": 2.0, "Linf": float("inf")}[norm]
    largest = float(torch.linalg.vector_norm(perturbation.flatten(1), ord=order, dim=1).max())
    if not largest <= radius * (1 + TOLERANCE) + TOLERANCE:
        raise EvaluationRefused(
            f"AutoAttack returned a perturbation of {norm} {largest:g}, beyond the radius {radius:g}: a fault of the library "
            "or its version, so none of its results is kept"
        )


def run_autoattack(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
    params: AutoAttackParams,
    seed: int,
    folder: RunFolder,
    processes: int | None = 1,
    who: str,
) -> dict[str, Any]:
    """AutoAttack at every radius of `params`: `clean` and one accuracy (fraction) for each `NORM RADIUS`.

    Beside them `verdicts` (for each of these a string: 1 for an image that stands, 0 for one that does not), `per_attack`
    (accuracy after each attack of the sequence), `disagreements` (images that the library considers robust and a recount in
    batches of another size does not, or the other way round; they count as not robust), `recounted` (the images of which that
    could be told; disagreements are None where it is 0) and the library's `warnings`.
    Finished shards are kept in `folder`. Raises EvaluationRefused for a model that must not be evaluated.
    """
    require_fit_for_attack(classifier, images, labels, batch_size=params.batch_size)
    starts = range(0, len(images), params.images_per_shard)
    settings = [(norm, label) for norm, radii in params.radii.items() for label in radii]

    def shard(norm: str, label: str, start: int) -> dict[str, Any]:
        rows = slice(start, start + params.images_per_shard)
        return attack_shard(
            classifier,
            images[rows],
            labels[rows],
            norm=norm,
            radius=radius_value(label),
            classes=classes,
            version=params.version,
            batch_size=params.batch_size,
            seed=shard_seed(seed, norm, label, start),
        )

    work: dict[str, Unit] = {
        _unit_name(norm, label, start): functools.partial(shard, norm, label, start)
        for norm, label in settings
        for start in starts
    }
    done = finished_units(folder, work, processes=processes, what=f"AutoAttack on the {who}")
    metrics: dict[str, Any] = {"verdicts": {}, "per_attack": {}, "disagreements": {}, "recounted": {}}
    warnings: set[str] = set()
    for norm, label in settings:
        shards = [done[_unit_name(norm, label, start)] for start in starts]
        for name, verdict in (("clean", "clean"), (f"{norm} {label}", "robust")):
            verdicts = "".join(shard[verdict] for shard in shards)
            metrics["verdicts"][name] = verdicts
            metrics[name] = verdicts.count("1") / len(images)
        metrics["disagreements"][f"{norm} {label}"], metrics["recounted"][f"{norm} {label}"] = _recounted(shards)
        metrics["per_attack"][f"{norm} {label}"] = {
            name: sum(shard["after"][name] for shard in shards) / len(images) for name in shards[0]["after"]
        }
        warnings.update(f"{norm} {label}: {text}" for shard in shards for text in shard["warnings"])
    return {**metrics, "warnings": sorted(warnings)}


def _recounted(shards: list[dict[str, Any]]) -> tuple[int | None, int]:
    """The disagreements of those shards that could be recounted, None where none could, and how many images these have."""
    found = [shard for shard in shards if shard["disagreements"] is not None]
    return sum(shard["disagreements"] for shard in found) if found else None, sum(shard["images"] for shard in found)


def headline(details: dict[str, Any]) -> dict[str, Any]:
    """The attack, its number of images, and of `model` and `baseline` (from `run_autoattack`) only the accuracies."""
    accuracies = {
        who: {name: value for name, value in details[who].items() if isinstance(value, float)}
        for who in ("model", "baseline")
    }
    return details | accuracies


def _unit_name(norm: str, label: str, start: int) -> str:
    return f"{norm}-{label.replace('/', '_')}-{start}"

"""The stages' evaluations of any network and images: the same numbers, in the same dictionaries, with progress and resume."""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import nn

from pag_core.compute.device import device_description
from pag_core.compute.randomness import streams_kept
from pag_core.errors import EvaluationRefused, ShapeMismatch
from pag_core.evaluation import masking, pgd
from pag_core.evaluation import pag_score as scoring
from pag_core.evaluation.autoattack import run_autoattack
from pag_core.evaluation.foolbox_suite import run_foolbox
from pag_core.evaluation.preconditions import require_eval_mode
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.library.options import checked_options
from pag_core.params.measurements import AutoAttackParams, FoolboxParams, MaskingParams
from pag_core.params.radii import radius_value
from pag_core.params.values import Section
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.code_identity import code_fingerprint
from pag_core.pipeline.locks import holding
from pag_core.pipeline.provenance import versions

Radii = Mapping[str, Sequence[float | str]]


def autoattack(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    radii: Radii = {"Linf": ("8/255",), "L2": (0.5,)},  # noqa: B006
    version: Literal["standard", "plus"] = "standard",
    batch_size: int = 200,
    images_per_shard: int = 200,
    seed: int = 0,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """AutoAttack (Croce and Hein, 2020) at each of `radii`: what metrics/details/autoattack.json has of a model.

    `network` in eval mode and float32 maps `images` float32 [N, C, H, W] in [0, 1] to logits; `labels` int64 [N]. Accuracies
    are fractions, by `clean` and `NORM RADIUS`. A `folder` keeps finished shards of `images_per_shard`, which are not computed
    again for the same weights, images, options, versions and device. Raises EvaluationRefused for a network that must not be
    evaluated, ParamsError for a bad option.
    """
    options = checked_options(
        AutoAttackParams,
        version=version,
        images=len(images),
        radii=radii,
        images_per_shard=images_per_shard,
        batch_size=batch_size,
    )
    with _work("autoattack", [network], images, labels, options, seed, folder) as (place, classes):
        return run_autoattack(
            network,
            images,
            labels,
            classes=classes,
            params=options,
            seed=seed,
            folder=place,
            processes=None,
            who="network",
        )


def foolbox_suite(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    grid: Radii = {"L2": (0.25, 0.5, 0.75, 1, 1.5, 2), "L0": (1, 5, 10, 25, 50), "L1": (1, 2, 4, 8)},  # noqa: B006
    ead_steps: int = 100,
    search_steps: int = 1000,
    salt_and_pepper_repeats: int = 2,
    batch_size: int = 100,
    seed: int = 0,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """The seven Foolbox attacks of Table 6 over a `grid` of radii: what metrics/details/foolbox.json has of a model.

    Network, images, `folder` and errors as of `autoattack`.
    """
    options = checked_options(
        FoolboxParams,
        images=len(images),
        grid=grid,
        ead_steps=ead_steps,
        search_steps=search_steps,
        salt_and_pepper_repeats=salt_and_pepper_repeats,
        batch_size=batch_size,
    )
    with _work("foolbox", [network], images, labels, options, seed, folder) as (place, _):
        return run_foolbox(
            network, images, labels, params=options, seed=seed, folder=place, processes=None, who="network"
        )


def masking_checks(
    network: nn.Module,
    baseline: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    radii: Radii = {"Linf": ("8/255", "16/255", "32/255", "64/255", "128/255"), "L2": (0.5, 1, 2, 4, 8)},  # noqa: B006
    transfer_radii: Radii = {"Linf": ("8/255",), "L2": (0.5,)},  # noqa: B006
    steps: int = 20,
    square_queries: int = 1000,
    batch_size: int = 200,
    seed: int = 0,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Checks that robustness is no illusion of masked gradients: what metrics/details/masking.json has.

    Images that fool `baseline`, a vanilla network of the same classes, are tried on `network`; a verdict of False is a sign of
    masking. Networks, images, `folder` and errors as of `autoattack`.
    """
    options = checked_options(
        MaskingParams,
        images=len(images),
        radii=radii,
        transfer_radii=transfer_radii,
        steps=steps,
        square_queries=square_queries,
        batch_size=batch_size,
    )
    with _work("masking", [network, baseline], images, labels, options, seed, folder) as (place, classes):
        return masking.masking_checks(
            network, baseline, images, labels, classes=classes, params=options, seed=seed, folder=place, processes=None
        )


def pag_score(
    network: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    batch_size: int = 1000,
) -> float:
    """The mean cosine in [-1, 1] of the network's input-gradients (of log-probabilities) with targets that it never saw.

    `images` float [N, C, H, W] in [0, 1]; `targets` float [N, classes, C, H, W], or `GradientTargets`, of which these are the
    first N images. At most `batch_size` input-gradients are taken at once. Raises EvaluationRefused as `autoattack`, and
    ShapeMismatch.
    """
    classes = _class_count(network, images)
    ask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = targets  # type: ignore[assignment]
    if isinstance(targets, torch.Tensor):
        held = targets
        if held.shape != (len(images), classes, *images.shape[1:]):
            raise ShapeMismatch(
                f"targets {list(held.shape)} must be {[len(images), classes, *images.shape[1:]]}, one of each class"
            )

        def ask(indices: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            return held[indices[:, None], chosen]

    return scoring.pag_score(
        network,
        images,
        lambda indices, chosen: ask(indices, chosen).to(images.device),
        classes=classes,
        batch_size=batch_size,
    )


def targeted_images(
    network: nn.Module,
    images: torch.Tensor,
    *,
    norm: Literal["L2", "Linf"] = "L2",
    radius: float | str = 3.0,
    steps: int = 60,
    batch_size: int = 200,
) -> torch.Tensor:
    """Each image attacked towards every class by targeted PGD of a large radius (Fig. 2): float [N, classes, C, H, W].

    `images` float [N, C, H, W] in [0, 1], as the result. Raises EvaluationRefused as `autoattack`.
    """
    classes = _class_count(network, images)
    return pgd.targeted_images(
        network, images, classes, norm=norm, radius=radius_value(str(radius)), steps=steps, batch_size=batch_size
    )


def targeted_figure(
    networks: Mapping[str, nn.Module],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_names: Sequence[str] | None = None,
    norm: Literal["L2", "Linf"] = "L2",
    radius: float | str = 3.0,
    steps: int = 60,
    batch_size: int = 200,
) -> Figure:
    """The `targeted_images` of several networks by name as a matplotlib figure, a row each (figures/targeted_pgd.png).

    `labels` int64 [N]; `class_names` are by default the numbers of the classes. Raises as `targeted_images`.
    """
    adversarial = {
        name: targeted_images(network, images, norm=norm, radius=radius, steps=steps, batch_size=batch_size).cpu()
        for name, network in networks.items()
    }
    classes = next(iter(adversarial.values())).shape[1]
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(classes)))
    return targeted_pgd(
        images.cpu(), labels.cpu(), adversarial, class_names=names, norm=norm, radius=str(radius), steps=steps
    )


def _class_count(network: nn.Module, images: torch.Tensor) -> int:
    require_eval_mode(network)
    with torch.no_grad():
        logits = network(images[:1])
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise EvaluationRefused(
            f"the network returns {found}, not logits [N, classes]; wrap it in one that returns them"
        )
    return logits.shape[1]


@contextlib.contextmanager
def _work(
    name: str,
    networks: list[nn.Module],
    images: torch.Tensor,
    labels: torch.Tensor,
    options: Section,
    seed: int,
    folder: str | Path | None,
) -> Iterator[tuple[RunFolder, int]]:
    """Where finished units are kept, known by all that shapes them, and the number of classes; random streams are kept."""
    classes = _class_count(networks[0], images)
    with streams_kept(images.device):
        if folder is None:
            with tempfile.TemporaryDirectory() as temporary:
                yield RunFolder(Path(temporary)), classes
            return
        identity = {
            "options": options.model_dump(mode="json"),
            "seed": seed,
            "networks": [f"{network} {_digest(network.state_dict())}" for network in networks],
            "data": _digest({"images": images, "labels": labels}),
            "code": code_fingerprint(),
            "versions": versions(),
            "device": device_description(images.device),
        }
        place = Path(folder) / f"{name}-{digest(identity)[:20]}"
        place.mkdir(parents=True, exist_ok=True)
        with holding(place / "lock", f"doing the same work in {place}"):
            found = RunFolder(place)
            found.forget_claims()  # of a killed run
            yield found, classes


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hexadecimal) over names, kinds and values."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()

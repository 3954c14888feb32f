"""What the page tells of: the metrics, pictures and records that the other stages wrote, read into one object."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pag_core.errors import PagError
from pag_core.gradients.manifest import read_manifest
from pag_core.params import Params

# name of the picture, and the words below it
FIGURES = {
    "robustness_radius": (
        "Accuracy against the radius of the attack: PGD curves and AutoAttack's points. Without masked gradients a curve "
        "falls to zero. The paper shows growing radii in Table 3."
    ),
    "targeted_pgd": (
        "Test images pushed towards each class (Figure 2 of the paper). Where gradients are perceptually aligned, "
        "features of the target class appear."
    ),
    "gradient_sources": (
        "Target gradients of each source for the same images (Figure 7 of the paper): the directions that the alignment "
        "term of Eq. 4 asks the classifier's input-gradients to take."
    ),
    "training_curves": "Training of model and baseline: the terms of Eq. 4 and the accuracy on training images, by epoch.",
}


@dataclass(frozen=True)
class Results:
    """An experiment's parameters, the contents of its metrics files, and where its classifier came from.

    Accuracies are fractions. `figures` maps a picture's name to its PNG; `label_effect` is None without a diffusion model.
    """

    params: Params
    autoattack: dict[str, Any]
    foolbox: dict[str, Any]
    masking: dict[str, Any]
    alignment: dict[str, Any]
    training: dict[str, Any]
    label_effect: dict[str, float] | None
    card: dict[str, Any]
    manifest: dict[str, Any]
    figures: dict[str, bytes]


def read_results(params: Params, root: Path = Path()) -> Results:
    """Read the results of the experiment in `root`.

    Raises PagError that names a file which is missing or damaged, and StoreError where the gradient store is.
    """
    manifest = read_manifest(root / "data" / "gradients" / f"{params.source}.zarr")
    metrics = {
        name: _read_json(root / "metrics" / f"{name}.json")
        for name in ("autoattack", "foolbox", "masking", "alignment", "training")
    }
    return Results(
        params=params,
        **metrics,
        label_effect=manifest["measured"] if params.source == "sbg" else None,
        card=_read_json(root / "data" / "classifier" / "card.json"),
        manifest=manifest,
        figures={name: _read(root / "figures" / f"{name}.png") for name in FIGURES},
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PagError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_read(path))
    except ValueError as error:
        raise PagError(f"{path} is damaged ({error}); run the stage that writes it again") from error
    return content

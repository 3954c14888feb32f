"""What the page shows: the metrics, pictures and records that the other stages wrote, read into one object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pag_core.classifiers.building import KIND, require_imported
from pag_core.errors import ArtifactError
from pag_core.gradient_store.manifest import read_manifest
from pag_core.params.sections import Params
from pag_core.params.values import is_imported
from pag_core.pipeline.artifacts import read_json
from pag_core.pipeline.paths import FIGURES as FIGURES_FOLDER
from pag_core.pipeline.paths import details_path, gradients_path, measured_path
from pag_core.pipeline.saved_network import read_card
from pag_core.report.one_origin import require_one_origin

# name of the picture, and the words below it
FIGURES = {
    "robustness_radius": (
        "Accuracy against the radius of the attack: PGD curves and AutoAttack's points. Without masked gradients a curve "
        "falls to zero. The paper shows growing radii in Table 3."
    ),
    "targeted_pgd": (
        "Targeted adversarial examples for each class (Figure 2 of the paper). Where gradients are perceptually aligned, "
        "features of the target class appear."
    ),
    "gradient_sources": (
        "Target gradients of each source for the same images (Figure 7 of the paper): the directions that the alignment "
        "term of Eq. 4 asks the classifier's input-gradients to take."
    ),
    "training_curves": (
        "Training of model and baseline: the terms of Eq. 4 and the accuracy on training images, by epoch; with "
        "train.validate_every also on validation images, clean and under a short APGD. A dotted line stands at the epoch whose "
        "weights were kept as the best on these."
    ),
}


@dataclass(frozen=True)
class Results:
    """An experiment's parameters, the details of its metrics, and where its classifier came from.

    Accuracies are fractions. `figures` maps a picture's name to its PNG; `label_effect` is None without a diffusion model,
    `manifest` (of the gradient store) where the classifier was not trained here.
    """

    params: Params
    autoattack: dict[str, Any]
    foolbox: dict[str, Any]
    masking: dict[str, Any]
    pag_score: dict[str, Any]
    training: dict[str, Any]
    label_effect: dict[str, float] | None
    card: dict[str, Any]
    manifest: dict[str, Any] | None
    figures: dict[str, bytes]


def read_results(params: Params, root: Path = Path()) -> Results:
    """Read the results of the experiment in `root`.

    Raises ArtifactError that names a file which is missing, damaged or not of the networks, data and parameters of now, and
    WeightsError or StoreError where a network or the gradient store is missing or damaged.
    """
    imported = is_imported(params.classifier_checkpoint)
    manifest = None if imported else read_manifest(root / gradients_path(params.source))
    details = {
        name: read_json(root / details_path(name))
        for name in ("autoattack", "foolbox", "masking", "pag_score", "training")
    }
    figures = {name: _read(root / FIGURES_FOLDER / f"{name}.png") for name in FIGURES}
    places = {who: measured_path(who, params.classifier_checkpoint) for who in ("classifier", "baseline")}
    cards = {who: read_card(root / place, KIND) for who, place in places.items()}
    if imported:
        require_imported(places["classifier"], cards["classifier"])
    require_one_origin(params, cards, manifest, details, figures)
    return Results(
        params=params,
        **details,
        label_effect=manifest["measured"] if manifest and params.source in ("sbg", "sbg_online") else None,
        card=cards["classifier"],
        manifest=manifest,
        figures=figures,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None

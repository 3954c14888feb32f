"""Trained classifiers on disk."""

from pathlib import Path
from typing import Any

import torch

from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.normalization import DEVIATION, MEAN, NormalizedClassifier
from pag_core.datasets.prepared import Dataset
from pag_core.errors import WeightsError
from pag_core.pipeline.code_identity import own_code_inputs
from pag_core.pipeline.own_code import is_own, own_file
from pag_core.pipeline.saved_network import SavedNetwork, load_network, load_weights, save_network

KIND = "classifier"


def save_classifier(
    folder: Path,
    classifier: NormalizedClassifier,
    *,
    arch: str,
    options: dict[str, Any],
    dataset: Dataset,
    provenance: dict[str, Any],
    training: dict[str, float] | None = None,
    kept: dict[str, Any] | None = None,
    imported: dict[str, Any] | None = None,
) -> None:
    """Write a trained classifier with the card that `load_classifier` rebuilds it from.

    `training` are the means of its last epoch, by name: losses, and the accuracy on training images as a fraction. `kept` says
    of which epoch the weights are where they are not the last, and by what they were chosen on validation images. `imported`
    says where one that was trained elsewhere comes from; which images it was trained on is then not known.
    """
    card: dict[str, Any] = {
        "kind": KIND,
        "arch": arch,
        "options": options,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "normalisation": {"mean": MEAN, "deviation": DEVIATION, "input_range": [0, 1]},
        "dataset": dataset.fingerprint,
        "provenance": provenance,
    } | {name: found for name, found in (("training", training), ("kept", kept)) if found is not None}
    if imported is not None:
        card |= {
            "normalisation": {
                "mean": classifier.mean.flatten().tolist(),
                "deviation": classifier.deviation.flatten().tolist(),
                "input_range": [0, 1],
            },
            "dataset": None,
            "imported": imported,
        }
    save_network(folder, classifier.state_dict(), card)


def require_imported(folder: Path, card: dict[str, Any]) -> None:
    """Raise WeightsError for a classifier of this pipeline: results would not say how it was trained."""
    if "imported" not in card:
        raise WeightsError(
            f"classifier_checkpoint {folder} holds a classifier that this pipeline trained, in another place; import its "
            "weights.safetensors (python -m pag_core.exchange.import_classifier --help), or set data/classifier"
        )


def load_classifier(folder: Path, dataset: Dataset, device: torch.device) -> tuple[NormalizedClassifier, SavedNetwork]:
    """A trained classifier in eval mode on `device`, and its card.

    Raises WeightsError if it is damaged, or was trained on other images than those of `dataset`, whose test images may then be
    among those that it has learnt, or if the user's file that builds it was edited since. Of an imported one its images are not
    known.
    """
    saved = load_network(folder, KIND)
    card = saved.card
    if tuple(card["class_names"]) != dataset.class_names or tuple(card["image_shape"]) != dataset.image_shape:
        raise WeightsError(
            f"{folder} was trained on {len(card['class_names'])} classes of images {card['image_shape']}; the dataset has "
            f"{dataset.classes} classes of images {list(dataset.image_shape)}: train again, or prepare the former dataset"
        )
    if card["dataset"] not in (dataset.fingerprint, None):
        raise WeightsError(
            f"{folder} was trained on other images or another split (fingerprint {card['dataset'][:12]}) than the dataset "
            f"has ({dataset.fingerprint[:12]}); its training images may be test images here: train again, or prepare the "
            "dataset with the former seed and settings"
        )
    if is_own(card["arch"]):
        (code,) = own_code_inputs(card["arch"], "arch").values()
        if card["provenance"]["inputs"].get(card["arch"]) != code:
            raise WeightsError(
                f"{folder} was trained with another {own_file(card['arch'])}: train again, or take the former file back"
            )
    classifier = build_classifier(
        card["arch"], **card["options"], image_shape=dataset.image_shape, classes=dataset.classes
    )
    load_weights(classifier, saved.tensors, f"{folder} does not fit the network that its card describes")
    return classifier.to(device).eval().requires_grad_(False), saved

"""Classifiers by the name that params.yaml gives them, new or from disk."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.classifiers.normalization import DEVIATION, MEAN, NormalizedClassifier
from pag_core.classifiers.small_resnet import small_resnet
from pag_core.datasets.prepared import Dataset
from pag_core.errors import ParamsError, WeightsError
from pag_core.weights import SavedNetwork, load_network, save_network

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
KIND = "classifier"


def build_classifier(
    arch: str, *, width: int | None, activation: str | None, image_shape: tuple[int, int, int], classes: int
) -> NormalizedClassifier:
    """A new classifier for images [0, 1] of `image_shape` [C, H, W]; None takes the architecture's own option.

    Weights are drawn from torch's global generator. Raises ParamsError for an option that the architecture lacks.
    """
    channels = image_shape[0]
    match arch:
        case "small_resnet":
            network = small_resnet(
                channels=channels, classes=classes, width=width or 16, activation=ACTIVATIONS[activation or "silu"]
            )
        case "resnet18":
            # torchvision takes as long to load as torch itself, so only the network that needs it pays
            from pag_core.classifiers.resnet18 import WIDTH, resnet18

            if width not in (None, WIDTH):
                raise ParamsError(f"params.yaml: classifier.width is {width}; resnet18 has {WIDTH} (or null)")
            network = resnet18(channels=channels, classes=classes, activation=ACTIVATIONS[activation or "relu"])
        case _:
            raise ParamsError(f"params.yaml: arch {arch!r} is not one of: small_resnet, resnet18")
    return NormalizedClassifier(network, channels=channels)


def save_classifier(
    folder: Path,
    classifier: NormalizedClassifier,
    *,
    arch: str,
    options: dict[str, Any],
    dataset: Dataset,
    provenance: dict[str, Any],
) -> None:
    """Write a trained classifier with the card that `load_classifier` rebuilds it from."""
    card = {
        "kind": KIND,
        "arch": arch,
        "options": options,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "normalisation": {"mean": MEAN, "deviation": DEVIATION, "input_range": [0, 1]},
        "dataset": dataset.fingerprint,
        "provenance": provenance,
    }
    save_network(folder, classifier.state_dict(), card)


def load_classifier(folder: Path, dataset: Dataset, device: torch.device) -> tuple[NormalizedClassifier, SavedNetwork]:
    """A trained classifier in eval mode on `device`, and its card.

    Raises WeightsError where it is damaged or was trained on other classes or image shapes than those of `dataset`.
    """
    saved = load_network(folder, KIND)
    card = saved.card
    if tuple(card["class_names"]) != dataset.class_names or tuple(card["image_shape"]) != dataset.image_shape:
        raise WeightsError(
            f"{folder} was trained on {len(card['class_names'])} classes of images {card['image_shape']}; the dataset has "
            f"{dataset.classes} classes of images {list(dataset.image_shape)}"
        )
    classifier = build_classifier(
        card["arch"], **card["options"], image_shape=dataset.image_shape, classes=dataset.classes
    )
    classifier.load_state_dict(saved.tensors)
    return classifier.to(device).eval().requires_grad_(False), saved

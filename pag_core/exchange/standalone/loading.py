"""Load an exported classifier, and the test images that it was attacked on; nothing here is unpickled."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from torch import nn

from pag_core.classifiers.architectures import build_classifier
from pag_core.errors import WeightsError


def load(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The classifier of an exported `folder`, in eval mode and without gradients of its weights.

    Takes images float32 [B, C, H, W] in [0, 1] and returns logits [B, classes]; normalisation is inside. Raises
    WeightsError if the weights are not those that the card describes.
    """
    card = json.loads((Path(folder) / "card.json").read_text(encoding="utf-8"))
    weights = (Path(folder) / "weights.safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise WeightsError(
            f"{folder}/weights.safetensors is not what its card describes (SHA-256); copy the folder again"
        )
    classifier = build_classifier(
        card["arch"], **card["options"], image_shape=tuple(card["image_shape"]), classes=len(card["class_names"])
    )
    classifier.load_state_dict(load_tensors(weights))
    return classifier.to(device).eval().requires_grad_(False)


def attacked_images(folder: str | Path, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The test images that the classifier was attacked on, float32 [N, C, H, W] in [0, 1], and their labels int64 [N]."""
    tensors = load_tensors((Path(folder) / "attacked_images.safetensors").read_bytes())
    return tensors["images"].to(device, torch.float32) / 255, tensors["labels"].to(device)

"""A network on disk: `weights.safetensors` beside `card.json`, which says what it is, where it came from and its SHA-256."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from pag_core.errors import TrainingDiverged, WeightsError
from pag_core.pipeline.artifacts import file_digest, read_sealed_json, replacing_folder, write_sealed_json


@dataclass(frozen=True)
class SavedNetwork:
    """What `load_network` returns: the card, and the tensors by name on the CPU."""

    card: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the card, which includes that of the weights: another architecture or other weights change it."""
        return str(self.card["checksum"])


def require_finite(tensors: Mapping[str, Any], what: str) -> None:
    """Raise TrainingDiverged, which names `what` and the tensor, if one of a state dict is not finite."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise TrainingDiverged(
                f"{what}: {name} is not finite, and is not saved; the last finite checkpoint is kept. Lower the learning rate "
                "(or lambda) and run again"
            )


def save_network(folder: Path, tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
    """Write a state dict and its card to `folder`, whole or not at all.

    The card gains the weights' `sha256` and a `checksum` of its own. Raises TrainingDiverged if a tensor is not finite.
    """
    require_finite(tensors, str(folder))
    with replacing_folder(folder) as partial:
        weights = partial / "weights.safetensors"
        # the library reports a full disk as an error of its own kind, Python as an OSError
        weights.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
        body = {**card, "sha256": file_digest(weights)}
        write_sealed_json(partial / "card.json", body)


def read_card(folder: Path, kind: str) -> dict[str, Any]:
    """The card of a network that `save_network` wrote, whose `checksum` is the network's fingerprint; the weights are not read.

    Raises WeightsError if it is missing, damaged or of another kind.
    """
    try:
        card = read_sealed_json(folder / "card.json")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no saved network ({error.filename} is missing); run the stage that makes it"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{folder / 'card.json'} is damaged ({error}); make the network again") from error
    if card.get("kind") != kind:
        raise WeightsError(f"{folder} holds a {card.get('kind')}, a {kind} is needed; name the folder of one")
    return card


def load_network(folder: Path, kind: str) -> SavedNetwork:
    """Read a network that `save_network` wrote; raises WeightsError if it is missing, damaged or of another kind."""
    card = read_card(folder, kind)
    try:
        found = file_digest(folder / "weights.safetensors")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no saved network ({error.filename} is missing); run the stage that makes it"
        ) from error
    if card.get("sha256") != found:
        raise WeightsError(
            f"{folder}/weights.safetensors is damaged: its SHA-256 is {found[:12]}, the card says "
            f"{str(card.get('sha256'))[:12]}; make it again"
        )
    try:
        return SavedNetwork(card, load_file(folder / "weights.safetensors"))
    except SafetensorError as error:
        raise WeightsError(f"{folder}/weights.safetensors cannot be read: {error}; make it again") from error


def load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor], misfit: str) -> None:
    """Give `network` the weights `tensors` by name.

    Raises WeightsError, which begins with `misfit`, for the first name or shape that differs.
    """
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            inside = f"{expected[name]} in" if name in expected else "no part of"
            raise WeightsError(
                f"{misfit}: {name} is {found.get(name, 'absent')}, and {inside} the network; it holds "
                f"{', '.join(list(tensors)[:3])} ..."
            )
    network.load_state_dict(tensors)

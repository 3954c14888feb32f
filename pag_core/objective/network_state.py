"""What a network keeps from one forward pass to the next: its buffers, and what its layers keep in Python."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pag_core.compute.randomness import streams_kept

# of every layer: torch's own tables, and the mode
OF_TORCH = frozenset(vars(nn.Module()))
CONTAINERS = (list, dict, set, deque)


class NetworkState:
    """Buffers and attributes of `network` as they are now, and where each is kept."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.layers = dict(network.named_modules())
        self.tables = {name: dict(layer._buffers) for name, layer in self.layers.items()}
        self.kept = {name: dict(_attributes(layer)) for name, layer in self.layers.items()}
        self.buffers = {name: value.detach().clone() for name, value in network.named_buffers()}
        self.attributes = {
            f"{name}.{key}".lstrip("."): _copied(value)
            for name, found in self.kept.items()
            for key, value in found.items()
        }

    def restore(self) -> None:
        """Put every buffer and attribute back, into the places that held it."""
        for name, layer in self.layers.items():
            layer._buffers.clear()
            layer._buffers.update(self.tables[name])
            for key in [key for key, _ in _attributes(layer) if key not in self.kept[name]]:
                del layer.__dict__[key]
            for key, value in self.kept[name].items():
                layer.__dict__[key] = value
                _refill(value, self.attributes[f"{name}.{key}".lstrip(".")])
        with torch.no_grad():
            for name, value in self.network.named_buffers():
                value.copy_(self.buffers[name])

    def attributes_changed_since(self, earlier: "NetworkState") -> set[str]:
        """The attributes, `layer.name`, that have another value than in `earlier`, and those that it did not have."""
        return {
            name
            for name in self.attributes.keys() | earlier.attributes.keys()
            if not _same(self.attributes.get(name), earlier.attributes.get(name))
        }


def plain_values(network: nn.Module) -> list[Any]:
    """Numbers and words that layers keep, as a temperature: a user may set them between steps, and operations hold them."""
    return [
        value
        for layer in network.modules()
        for key, value in vars(layer).items()
        if isinstance(value, bool | int | float | str) and key not in OF_TORCH
    ]


@contextlib.contextmanager
def state_kept(network: nn.Module, device: torch.device) -> Iterator[NetworkState]:
    """The body may run `network`; afterwards its buffers, its attributes and all random streams are as they were."""
    state = NetworkState(network)
    with streams_kept(device):
        try:
            yield state
        finally:
            state.restore()


@contextlib.contextmanager
def in_float64(network: nn.Module) -> Iterator[None]:
    """Inside, parameters, buffers and attributes of floating point are float64 copies; afterwards the very tensors are back.

    The parameters themselves are not cast: DistributedDataParallel's hooks would be lost with their accumulators.
    """
    places: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for layer in network.modules():
        tables: tuple[Any, ...] = (layer._parameters, layer._buffers, vars(layer))
        places += [(table, dict(table)) for table in tables]
    copies: dict[int, torch.Tensor] = {}
    try:
        for place, content in places:
            for key, value in content.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    if id(value) not in copies:  # one that is shared stays shared
                        copies[id(value)] = _as_float64(value)
                    place[key] = copies[id(value)]
        yield
    finally:
        for place, content in places:
            place.clear()
            place.update(content)


def _as_float64(value: torch.Tensor) -> torch.Tensor:
    copy = value.detach().to(torch.float64, copy=True)
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy


def _attributes(layer: nn.Module) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in vars(layer).items() if key not in OF_TORCH]


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, CONTAINERS) else value


def _refill(value: Any, content: Any) -> None:
    """Give a container, or a tensor that is not a buffer, the content that it had."""
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            value.copy_(content)
    elif isinstance(value, CONTAINERS) and not _same(value, content):
        value.clear()
        if isinstance(value, dict | set):
            value.update(content)
        else:
            value.extend(content)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    try:
        return bool(one == other)
    except Exception:  # whatever the type of a user compares by; equal is what is seen to be equal
        return False

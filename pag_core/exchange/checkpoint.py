"""A file of weights that others wrote, read as plain tensors by name: no code of it is run."""

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pag_core.errors import WeightsError

Tensors = dict[str, torch.Tensor]
# what torch raises for a file that is not a checkpoint, a damaged one, and one that holds more than plain tensors
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one network of a file, by the names that the network has for them.

    `prefix` is what stands before these in the file; `left_out` names the other tensors that it holds, as `optimizer`.
    """

    tensors: Tensors
    prefix: str
    left_out: list[str]


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a file that torch.save or safetensors wrote, by the path to it; of any other file WeightsError."""
    named = dict(_named(_content(path), ""))
    if not named or "" in named:
        raise WeightsError(
            f"{path} does not hold tensors by name; give the file of the network, as torch.save(model.state_dict(), ...) "
            "writes it"
        )
    return named


def one_network(named: Tensors, prefixes: list[str], weights: str | None, path: Path) -> Checkpoint:
    """Of `named` one network, floats as float32, of those that lie under `prefixes`; of several `weights` says which.

    Raises WeightsError where that is left open, and for values that are not finite.
    """
    prefix = _chosen(prefixes, weights, path)
    # a network within this one is another
    others = [other for other in prefixes if other != prefix and other.startswith(prefix)]
    own = [name for name in named if name.startswith(prefix) and not name.startswith(tuple(others))]
    for name in own:
        if named[name].is_floating_point() and not torch.isfinite(named[name]).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    return Checkpoint(
        {name.removeprefix(prefix): _as_float32(named[name]) for name in own},
        prefix,
        sorted({_group(name, prefix) for name in named.keys() - set(own)}),
    )


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a file of safetensors ({error}); write it again") from error
    except UNREADABLE as error:
        # torch's own message goes on to say how to load the file all the same
        found = re.search(
            r"(?:WeightsUnpickler error: |(?=Trying to load))(.+?)( was not an allowed|\.?\n)", str(error)
        )
        reason = found[1] if found else type(error).__name__
        raise WeightsError(
            f"{path} is not a file of plain tensors, and nothing of it was run ({reason}); where it was written, save the "
            "weights alone: torch.save(model.state_dict(), ...)"
        ) from error


def _named(content: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dictionaries and lists, with the path to it, its parts joined by dots."""
    if isinstance(content, torch.Tensor):
        yield place, content.detach()
    elif isinstance(content, dict | list | tuple):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _named(part, f"{place}.{key}" if place else str(key))


def _chosen(prefixes: list[str], weights: str | None, path: Path) -> str:
    options = " or ".join(f'--weights "{prefix.removesuffix(".")}"' for prefix in prefixes)
    if weights is None:
        if len(prefixes) > 1:
            raise WeightsError(
                f"{path} holds several networks; name one: {options}. A moving average (ema) is usually the one to take"
            )
        return prefixes[0]
    for prefix in prefixes:
        if weights in (prefix, prefix.removesuffix(".")):
            return prefix
    raise WeightsError(f'{path} has no network under "{weights}"; it has: {options}')


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _group(name: str, prefix: str) -> str:
    """Where a tensor that is no part of the network lies: its path up to where it leaves that of the network."""
    parts, own = name.split("."), prefix.split(".")
    shared = next(number for number, part in enumerate(parts) if number >= len(own) or part != own[number])
    return ".".join(parts[: shared + 1])

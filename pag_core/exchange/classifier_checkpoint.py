"""A classifier's checkpoint of any project: the weights that fit a network, and where its logits are in what it returns."""

from collections import Counter
from pathlib import Path

import torch
from torch import nn

from pag_core.errors import WeightsError
from pag_core.exchange.checkpoint import Checkpoint, one_network, read_tensors

# a count that batch-norm needs for a momentum of None alone; older files lack it
UNNEEDED = "num_batches_tracked"
SHOWN = 6


def read_weights(path: Path, network: nn.Module, weights: str | None = None) -> Checkpoint:
    """The tensors of a file that fit `network`, floats as float32, whatever stands before their names.

    Of several networks in it `weights`, the prefix, says which. Raises WeightsError as `read_tensors` and `one_network` do,
    and for tensors that are missing, are no part of the network, or have another shape, all by name.
    """
    expected = network.state_dict()
    named = read_tensors(path)
    counts: Counter[str] = Counter()
    for name in named:
        parts = name.split(".")
        for start in range(len(parts)):
            if (own := ".".join(parts[start:])) in expected:
                counts[name.removesuffix(own)] += 1
    if not counts:
        raise WeightsError(
            f"{path} has no tensor of the network: it has {_listed(list(named))}; the network has {_listed(list(expected))}. "
            "Give its own --arch and --options"
        )
    most = max(counts.values())
    # what is asked for may lack some, as an average of the parameters alone: which, is said below
    asked = None if weights is None else weights.removesuffix(".")
    prefixes = [prefix for prefix, count in counts.items() if count == most or prefix.removesuffix(".") == asked]
    read = one_network(named, prefixes, weights, path)
    kept = {name: tensor for name, tensor in expected.items() if name.endswith(UNNEEDED)} | read.tensors
    _require_equal_shapes(kept, expected, f"{path}, {f'under {read.prefix}' if read.prefix else 'the whole file'}")
    return Checkpoint({name: kept[name] for name in expected}, read.prefix, read.left_out)


def _require_equal_shapes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], place: str) -> None:
    shapes = [
        f"{name} is {list(found[name].shape)}, and {list(expected[name].shape)} in the network"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "no part of the network": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    if said := [f"{what}: {_listed(names)}" for what, names in problems.items() if names]:
        raise WeightsError(
            f"{place}, does not fit the network that --arch and --options name, built for the classes and images of the "
            f"dataset: {'; '.join(said)}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

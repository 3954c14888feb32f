"""A checkpoint of guided_diffusion or improved-diffusion: its weights read as plain tensors, and the U-Net that they fit."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.diffusion.network import build_network
from pag_core.errors import WeightsError
from pag_core.exchange.checkpoint import Checkpoint, Tensors, one_network, read_tensors
from pag_core.pipeline.saved_network import load_weights

# a network is where a tensor has this name, whatever stands before it
FIRST_NAME = "time_embed.0.weight"


def read_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """The network in a file that torch.save wrote, floats as float32, on the CPU; no code of the file is run.

    Its state dict may lie anywhere in the file, and its names may share a prefix (`module.` of DataParallel, `_orig_mod.` of
    torch.compile, `ema_model.`). Of several networks `weights`, the prefix, says which. Raises WeightsError if the file
    cannot be read, for no network or several, and for values that are not finite.
    """
    named = read_tensors(path)
    prefixes = [name.removesuffix(FIRST_NAME) for name in named if f".{name}".endswith(f".{FIRST_NAME}")]
    if not prefixes:
        raise WeightsError(
            f"{path} is not the state dict of guided_diffusion's or improved-diffusion's UNetModel: it has no {FIRST_NAME}, "
            f"with whatever before it (but {', '.join(list(named)[:3])})"
        )
    return one_network(named, prefixes, weights, path)


def inferred_config(tensors: Tensors, image_side: int, place: str) -> dict[str, Any]:
    """What the shapes say of the U-Net: channels, multipliers, blocks, attention, learned variance, and its kind of blocks.

    Attention is given in pixels of images of `image_side`. Raises WeightsError if they are not those of such a U-Net.
    """
    channels = _shape(tensors, "time_embed.0.weight", place)[1]
    ends = _upsampling(tensors)
    levels, outputs = len(ends) + 1, _count(tensors, "output_blocks")
    blocks = outputs // levels - 1
    if outputs % levels or blocks < 1:
        raise WeightsError(
            f"{place} has {outputs} output blocks and {len(ends)} upsamplings: not the U-Net of the library"
        )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    sizes = [_shape(tensors, f"input_blocks.{first}.0.in_layers.2.weight", place)[0] for first in firsts]
    if odd := [size for size in sizes if size % channels]:
        raise WeightsError(f"{place} has a level of {odd[0]} channels, which is no multiple of its {channels}")
    in_channels = _shape(tensors, "input_blocks.0.0.weight", place)[1]
    return {
        "channels": channels,
        "channel_multipliers": [size // channels for size in sizes],
        "residual_blocks": blocks,
        "attention_resolutions": [
            image_side >> level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in tensors
        ],
        "learn_sigma": _shape(tensors, "out.2.weight", place)[0] == 2 * in_channels,
        "scale_shift_norm": _shape(tensors, "input_blocks.1.0.emb_layers.1.weight", place)[0] == 2 * sizes[0],
        "resblock_updown": any(kind == "in_layers" for kind in ends),
    }


def _shape(tensors: Tensors, name: str, place: str) -> torch.Size:
    if name not in tensors or tensors[name].ndim < 2:
        raise WeightsError(
            f"{place} is not the state dict of guided_diffusion's or improved-diffusion's UNetModel: it has no {name} (but "
            f"{', '.join(list(tensors)[:3])} ...)"
        )
    return tensors[name].shape


def _count(tensors: Tensors, blocks: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{blocks}.")})


def _upsampling(tensors: Tensors) -> list[str]:
    """For each output block that ends in an upsampling what it is made of: `conv`, or the `in_layers` of a residual block."""
    found = {}
    for name in tensors:
        if match := re.fullmatch(r"output_blocks\.(\d+)\.[1-9]\d*\.(conv|in_layers)\..*", name):
            found[match[1]] = match[2]
    return list(found.values())


def with_no_class_last(tensors: Tensors, classes: int, no_class: int | None, place: str) -> Tensors:
    """The tensors with the label that means "no class" last (label C); the other labels keep their order.

    None says that it is last already. Raises WeightsError unless the model has C+1 labels.
    """
    if "label_emb.weight" not in tensors:
        raise WeightsError(f"{place} has no labels (no label_emb.weight): Eq. 8 needs predictions for each class")
    labels = len(tensors["label_emb.weight"])
    if labels == classes:
        raise WeightsError(
            f"{place} has {labels} labels, one for each class and none that means no class: Eq. 8 subtracts the prediction "
            f"without a class. Train one with {classes + 1} labels, whose last takes the place of a label with probability "
            f"1/{classes} (Appendix G.2)"
        )
    if labels != classes + 1:
        raise WeightsError(f"{place} has {labels} labels; {classes} classes and no class make {classes + 1}")
    last = classes if no_class is None else no_class
    if not 0 <= last <= classes:
        raise WeightsError(f"--no-class is {last}; the labels of {place} are 0 to {classes}")
    order = [label for label in range(labels) if label != last] + [last]
    return {**tensors, "label_emb.weight": tensors["label_emb.weight"][order].contiguous()}


def fitted_network(card: dict[str, Any], tensors: Tensors, image_shape: tuple[int, int, int], place: str) -> nn.Module:
    """The U-Net of `card` with these weights; raises WeightsError for the first name or shape that differs."""
    channels = _shape(tensors, "input_blocks.0.0.weight", place)[1]
    if channels != image_shape[0]:
        raise WeightsError(f"{place} takes images of {channels} channels; those of the dataset have {image_shape[0]}")
    network = build_network(card, image_shape, len(tensors["label_emb.weight"]) - 1)
    load_weights(network, tensors, f"{place} does not fit the U-Net that its shapes suggest")
    return network

"""The precision that a network computes in, apart from that of its weights (float32)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pag_core.errors import ParamsError

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def require_precision(precision: str, device: torch.device, key: str) -> None:
    """Raise ParamsError, naming the parameter `key`, where `device` has no such mode."""
    if precision == "tf32" and device.type != "cuda":
        raise ParamsError(
            f"params.yaml: {key} tf32 is a mode of NVIDIA GPUs, and the device is {device.type}; set float32"
        )


@contextlib.contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products of float32 in TF32 where `precision` is `tf32`, in full float32 elsewhere.

    A backward pass takes what is set when it runs, not what was set in its forward pass: both belong inside the body.
    """
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """A forward pass in `float32`, `tf32`, or by autocast in `bfloat16` or `float16`, inside the body."""
    autocast = torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    with products_in(precision, device), autocast:
        yield

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
    # the older switches set the newer ones (fp32_precision) too; the other way round torch refuses to read the older ones,
    # which torch.compile does
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = precision == "tf32"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def rounded_products(device: torch.device) -> list[str]:
    """The products of float32 that torch may round on `device` as it is set now, as `matrix products in tf32`."""
    # what the newer switches say holds whichever were set, where torch may refuse to read the older ones
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    switches = {"cuda": (cuda.matmul, cudnn.conv), "cpu": (mkldnn.matmul, mkldnn.conv)}
    products = zip(("matrix products", "convolutions"), switches.get(device.type, ()), strict=False)
    return [
        f"{what} in {place.fp32_precision}" for what, place in products if place.fp32_precision not in ("ieee", "none")
    ]


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """A forward pass in `float32`, `tf32`, or by autocast in `bfloat16` or `float16`, inside the body."""
    autocast = torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    with products_in(precision, device), autocast:
        yield

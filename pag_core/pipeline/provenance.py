"""Where an artifact came from: parameters, seed, data fingerprint, versions and device."""

import functools
import importlib.metadata
import platform
from typing import Any

import torch

from pag_core.compute.device import device_description

# what results are computed, drawn, read or stored with; the other dependencies only show, check or run them
LIBRARIES = (
    "torch", "torchvision", "timm", "lightning-fabric", "guided-diffusion-sdk", "pyautoattack", "foolbox",
    "numpy", "scipy", "scikit-learn", "pillow", "zarr", "numcodecs", "safetensors",
)  # fmt: skip


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; `absent` where one is not installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def provenance(
    *, params: dict[str, Any], seed: int, inputs: dict[str, str], device: torch.device | None, processes: int = 1
) -> dict[str, Any]:
    """The record that every artifact carries.

    `params` are the parameters that shaped it, `inputs` the fingerprints (SHA-256) of what it was made from, `device` is
    None for plain CPU work that is the same with any number of threads.
    It holds neither time nor host, so equal work gives equal bytes. The number of `processes` is recorded if
    several shared the sums that made it.
    """
    record = {
        "params": params,
        "seed": seed,
        "inputs": inputs,
        "versions": versions(),
        "device": "cpu" if device is None else device_description(device),
    }
    return record | {"processes": processes} if processes > 1 else record

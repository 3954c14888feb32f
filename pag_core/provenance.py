"""Where an artifact came from: parameters, seed, data fingerprint, versions and device."""

import functools
import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pag_core.device import device_description

LIBRARIES = ("torch", "torchvision", "numpy", "zarr", "guided_diffusion_sdk", "pyautoattack", "foolbox")
PACKAGE = Path(__file__).parent


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
    *, params: dict[str, Any], seed: int, inputs: dict[str, str], device: torch.device, processes: int = 1
) -> dict[str, Any]:
    """The record that every artifact carries.

    `params` are the parameters that shaped it, `inputs` the fingerprints (SHA-256) of what it was made from.
    It holds neither time nor host, so equal work gives equal bytes. Several `processes` are told where they shared the
    sums that made it.
    """
    record = {
        "params": params,
        "seed": seed,
        "inputs": inputs,
        "versions": versions(),
        "device": device_description(device),
    }
    return record | {"processes": processes} if processes > 1 else record


def code_digest() -> str:
    """SHA-256 over the project's own modules that this process has loaded: a change of any of them voids checkpoints."""
    paths = [
        Path(module.__file__)
        for name, module in sys.modules.items()
        if name.startswith("pag_core") and module.__file__ is not None
    ]
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(str(path.relative_to(PACKAGE)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()

"""Where an artifact came from: parameters, seed, data fingerprint, versions and device."""

import functools
import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pag_core.artifacts import file_digest
from pag_core.device import device_description
from pag_core.import_closure import CHECKOUT, PACKAGE, import_closure

# what results are computed, drawn, read or stored with; the rest of the dependencies shows, checks or runs them
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
    It holds neither time nor host, so equal work gives equal bytes. Several `processes` are told where they shared the
    sums that made it.
    """
    record = {
        "params": params,
        "seed": seed,
        "inputs": inputs,
        "versions": versions(),
        "device": "cpu" if device is None else device_description(device),
    }
    return record | {"processes": processes} if processes > 1 else record


def code_digest(program: Path | None = None, root: Path = CHECKOUT) -> str:
    """SHA-256 over the code of `program` (the file that Python was started with) and of all that it can load of `root`.

    It does not depend on what has been loaded so far, so that a checkpoint is void after a change of a module that is
    loaded later. A program from elsewhere (a notebook, a test) has the whole package as its code.
    """
    if program is None:
        started = getattr(sys.modules["__main__"], "__file__", None)
        program = Path(started).resolve() if started is not None else None
    closure: set[Path] = set()
    if program is not None and program.is_relative_to(root):
        closure = import_closure(root, program.relative_to(root))
    if program is not None and closure:
        paths = {program, *(root / path for path in closure)}
    else:
        paths = set((root / PACKAGE).rglob("*.py"))
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(root)} {file_digest(path)}\n".encode())
    return total.hexdigest()

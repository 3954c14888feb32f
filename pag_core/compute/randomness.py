"""All randomness comes from the one seed of params.yaml: each use derives a stream of its own from it by name."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of the experiment's `seed`; streams of other names are independent."""
    words = [seed]
    for name in names:
        # bytes are below 256: the other words keep names apart, and numbers apart from names
        words += [256, 512 + name] if isinstance(name, int) else [257, *name.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A generator on `device` for the stream `names`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *names))


def seed_global_streams(seed: int, *names: str | int) -> None:
    """Seed the global generators that libraries (attacks, dropout, initialisation) draw from."""
    value = derived_seed(seed, *names)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextlib.contextmanager
def streams_kept(device: torch.device) -> Iterator[None]:
    """The body may seed the global generators and draw from them; afterwards they are as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    # stand-ins for GPU tensors have no GPU
    with torch.random.fork_rng([device] if device.type == "cuda" and torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def require_determinism(device: torch.device) -> None:
    """Ask a GPU for deterministic kernels and full float32; an operation that has no deterministic kernel warns.

    torch lets convolutions round to TF32 unless told otherwise, and products of matrices where the variable
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is 1, as in some vendors' images: an attack may then count an image that another batch
    size does not. Training asks for TF32 where it is wanted (`products_in`).

    The CPU's kernels are deterministic for a given number of threads, and asking there loads torch's compiler (seconds).
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # deterministic mode also fills every new tensor, which matters only to code that reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def global_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators that work on `device` draws from, for a checkpoint."""
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "gpu": gpu}


def restore_global_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `global_state` returned, a GPU's part on `device`, whichever GPU it was before.

    Between the CPU and a GPU only the CPU's part is carried over: they draw different numbers from the same state anyway.
    """
    # a checkpoint may have been loaded onto a GPU; the states of generators live on the CPU
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and state["gpu"] is not None:
        torch.cuda.set_rng_state(state["gpu"].cpu(), device)

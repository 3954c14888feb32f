"""Where tensors live: the CPU or one GPU, named by the parameter `device`."""

import ctypes
import functools
import os
import platform
import re
from pathlib import Path

import torch

from pag_core.compute.randomness import require_determinism
from pag_core.errors import ParamsError

CPUINFO = Path("/proc/cpuinfo")
# mallopt's names for what it sets (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare_device(name: str, threads: int | None) -> torch.device:
    """The device for the parameter `device`: `auto` (a GPU where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Sets the device up for deterministic work, and the number of CPU threads where `threads` is not None. Raises
    ParamsError where the named device is not on this machine.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if name == "auto" else name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ParamsError(f"params.yaml: device is {name!r}, but torch sees no GPU here; set `device: auto` or `cpu`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParamsError(
            f"params.yaml: device is {name!r}, but this machine has GPUs 0 to {torch.cuda.device_count() - 1}; "
            "set one of these, or `device: auto`"
        )
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        # processes that share work take a GPU each, in turn if there are too few
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if device.index is not None:
        torch.cuda.set_device(device)  # libraries that ask for "cuda" mean this one
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    require_determinism(device)
    return device


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether the C library (glibc) can.

    Otherwise every tensor of 32 MiB or more is new memory, whose pages the system clears one by one on first use. The
    feature maps of ten classes are such tensors (docs/performance.md).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    # no mappings of their own for large tensors, and no part of the heap given back
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1))


def device_description(device: torch.device) -> str:
    """What computed a result: the GPU's name, or the processor's with the number of threads.

    Both fix the order of sums, so with either changed long training ends elsewhere.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'' if threads == 1 else 's'}"


def described_threads(description: str) -> int | None:
    """The number of CPU threads that a `device_description` states; None for a GPU."""
    found = re.search(r", (\d+) threads?$", description)
    return int(found[1]) if found else None


@functools.cache
def processor_name() -> str:
    """The processor's model as the operating system names it; its architecture where it names none."""
    return described_processor("model name") or platform.processor() or platform.machine()


def described_processor(*keys: str) -> str:
    """What `CPUINFO` says of the first core under one of `keys`; empty where there is no such line or file."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(keys)), "")

"""The peak of memory that one step takes: of a fresh process on the CPU, of the allocator on a GPU."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

# new processes are copies of one that has imported torch, which takes seconds, and computed nothing
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["benchmarks.pag_step"])
STATUS = Path("/proc/self/status")
UNAVAILABLE = "this system does not tell the peak of resident memory (no VmHWM in /proc/self/status)"


def available(device: torch.device) -> bool:
    """Whether the peak can be told here."""
    return device.type == "cuda" or (STATUS.exists() and "VmHWM" in STATUS.read_text(encoding="utf-8"))


def _resident(field: str) -> int:
    # not getrusage: a new process starts with its parent's ru_maxrss
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(UNAVAILABLE)


def peak_of_step(build: Callable[..., Callable[[], Any]], *arguments: Any, device: torch.device) -> int:
    """Bytes that `build(*arguments)()` adds at its peak to what is held once it is built.

    `build` is a function of a module. On the CPU it runs in a process of its own, whose resident memory counts.
    """
    if device.type == "cuda":
        step = build(*arguments)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with ProcessPoolExecutor(1, mp_context=START) as pool:
        return pool.submit(_peak_in_this_process, build, arguments).result()


def _peak_in_this_process(build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> int:
    step = build(*arguments)
    held = _resident("VmRSS")
    step()
    return _resident("VmHWM") - held

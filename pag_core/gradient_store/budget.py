"""Where the training's target gradients fit: on the device, in host memory, on the disk, or only a window of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from pag_core.errors import ParamsError
from pag_core.pipeline.artifacts import GIGABYTE, readable_bytes

# of the memory that is free when training begins; the rest is for the training itself and for other work
SHARE = 0.5
CGROUP = Path("/sys/fs/cgroup")


def available_host_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that a process may still take: the system's estimate, or what the container's limit leaves if that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    # the page cache counts as used, and is released when memory is asked for
    return max(0, min(available, limit - used + int(statistics.get("inactive_file", 0))))


@dataclass(frozen=True)
class Need:
    """Bytes of the codes of all gradients, of their scales and of one shard's codes, and the number of shards."""

    codes: int
    scales: int
    shard: int
    shards: int

    def resident(self) -> int:
        """All of it, and a shard while it is streamed in."""
        return self.codes + self.scales + self.shard

    def window(self, shards: int) -> int:
        """A window, the next one, and a shard while it is read."""
        return (2 * min(shards, self.shards) + 1) * self.shard + self.scales


@dataclass(frozen=True)
class Room:
    """Bytes that may be used: on the GPU (None without one), in host memory, on the disk of the cache."""

    gpu: int | None
    host: int
    disk: int


def measured_room(device: torch.device, cache: Path, budget_gb: float | None, processes: int) -> Room:
    """What is free now, capped by `budget_gb` or else by half of the free memory, shared by `processes` of this machine."""

    def capped(free: int) -> int:
        allowed = free * SHARE if budget_gb is None else min(free, budget_gb * GIGABYTE)
        return int(allowed / processes)

    # a device of its own for each process
    gpu = capped(torch.cuda.mem_get_info(device)[0] * processes) if device.type == "cuda" else None
    return Room(gpu, capped(available_host_memory()), shutil.disk_usage(cache).free)


@dataclass(frozen=True)
class Choice:
    """How a training run is fed: `resident`, `memory_map` or `window`, and whether a resident array is on the GPU."""

    mode: str
    on_gpu: bool
    bytes: int
    room: int


def choose(mode: str, need: Need, room: Room, *, window_shards: int | None) -> Choice:
    """The mode for what is needed and free: windows where `window_shards` asks for them, else resident or a map of a file.

    The latter two visit the images in one order, so that memory does not decide a result; `auto` takes the first that
    fits. Raises ParamsError that says what is needed, what is free and what fits.
    """
    on_gpu = room.gpu is not None and need.resident() <= room.gpu
    memory = room.gpu if on_gpu and room.gpu is not None else room.host
    candidates = {
        "resident": Choice("resident", on_gpu, need.resident(), memory),
        "memory_map": Choice("memory_map", False, need.codes, room.disk),
    }
    if window_shards is not None:
        candidates = {"window": Choice("window", False, need.window(window_shards), room.host)}
    fitting = {name: choice for name, choice in candidates.items() if choice.bytes <= choice.room}
    for name in candidates if mode == "auto" or window_shards is not None else (mode,):
        if name in fitting:
            return fitting[name]
    raise ParamsError(_misfit(mode, need, room, window_shards, list(fitting)))


def _misfit(mode: str, need: Need, room: Room, window_shards: int | None, fitting: list[str]) -> str:
    most = int(((room.host - need.scales) / need.shard - 1) / 2)
    remedies = [f"feed.mode {name} fits" for name in fitting]
    if most >= 1:
        remedies.append(f"feed.window_shards: {most} fits (it visits the images in another order)")
    gpu = "" if room.gpu is None else f"{readable_bytes(room.gpu)} of GPU memory, "
    asked = f"feed.mode {mode}" if window_shards is None else f"feed.window_shards {window_shards}"
    window = (
        "" if window_shards is None else f", the windows {readable_bytes(need.window(window_shards))} of host memory"
    )
    return (
        f"params.yaml: {asked} does not fit: resident needs {readable_bytes(need.resident())} of memory, memory_map "
        f"{readable_bytes(need.codes)} of disk{window}; {gpu}{readable_bytes(room.host)} of host memory "
        f"(feed.budget_gb) and {readable_bytes(room.disk)} of disk may be used. "
        + (
            "; ".join(remedies)
            or "Raise feed.budget_gb, or make the store with a smaller gradient_store.images_per_shard"
        )
    )

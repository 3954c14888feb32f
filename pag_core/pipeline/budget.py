"""Where what a training reads fits, its images or target gradients: on the device, in host memory, on the disk, or a window."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pag_core.errors import ParamsError
from pag_core.params.sections import FeedParams
from pag_core.pipeline.artifacts import GIGABYTE, readable_bytes
from pag_core.pipeline.raw_copies import remove_stale_copies

# of the memory that is free when training begins; the rest is for the training itself and for other work
SHARE = 0.5
CGROUP, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# the files of a limit, of what is used, and the statistic of what would be released: of one tree (v2), of one for memory (v1)
UNIFIED = ("memory.max", "memory.current", "inactive_file")
SEPARATE = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_host_memory(cgroup: Path = CGROUP, own: Path = OWN_CGROUPS) -> int:
    """Bytes that a process may still take: the system's estimate, or what the tightest limit on it leaves if that is less.

    Limits are those of its control group and of the groups around it, as containers, systemd and SLURM set them.
    """
    import psutil

    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_left_by_limits(cgroup, own)]))


def _left_by_limits(cgroup: Path, own: Path) -> Iterator[int]:
    """What each limit leaves; `own` has lines `NUMBER:CONTROLLERS:PLACE`, without controllers where one tree has all (v2)."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            root, names = (cgroup, UNIFIED) if controllers == "" else (cgroup / "memory", SEPARATE)
            group = root / place.lstrip("/")
            # a container may see its own group as the root, whatever its place is called outside
            for folder in dict.fromkeys([group, *group.parents, root]):
                if folder.is_relative_to(root) and (left := _left(folder, *names)) is not None:
                    yield left


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # the page cache counts as used, and is released when memory is asked for
        released = int(statistics.get(reclaimable, 0))
        return int((folder / limit).read_text()) - int((folder / used).read_text()) + released
    except (OSError, ValueError):  # none, or one without a limit ("max")
        return None


@dataclass(frozen=True)
class Need:
    """Bytes of all of it, of what is in memory beside it in any case, and of one shard; the number of shards.

    `what` it is, in words; `per_window` shards are read for each of `feed.window_shards`, and `remedy` is one beside
    a larger budget.
    """

    what: str
    whole: int
    beside: int
    shard: int
    shards: int
    per_window: int = 1
    remedy: str = ""

    def resident(self) -> int:
        """All of it, and a shard while it is streamed in: as it is read and as it is decoded."""
        return self.whole + self.beside + 2 * self.shard

    def window(self, shards: int) -> int:
        """A window, the next one, and a shard while it is read."""
        return (2 * min(shards * self.per_window, self.shards) + 1) * self.shard + self.beside


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


def chosen_mode(
    params: FeedParams, need: Need, device: torch.device, copy: Path, *, processes: int, of: str, taken: int = 0
) -> Choice:
    """What `choose` finds for what is free now, and for the raw copy, which may be there already; one line says it.

    The line says that it is `of` so many images. Of the budget of each of `processes` other things have `taken` so many bytes.
    """
    remove_stale_copies(copy)  # room for this one, of which copies of other contents may take some
    budget = None if params.budget_gb is None else max(0.0, params.budget_gb - taken * processes / GIGABYTE)
    room = measured_room(device, copy.parent, budget, processes)
    if copy.exists():
        room = replace(room, disk=room.disk + copy.stat().st_size)
    choice = choose(params.mode, need, room, window_shards=params.window_shards)
    place = {
        ("resident", True): "resident on the GPU",
        ("resident", False): "resident in host memory",
        ("memory_map", False): "a memory-mapped file in .cache",
        ("window", False): f"windows of {params.window_shards} shuffled shards",
    }[choice.mode, choice.on_gpu]
    print(
        f"{need.what} of {of}: {place} (feed.mode {params.mode}), "
        f"{readable_bytes(choice.bytes)} of {readable_bytes(choice.room)} that may be used",
        flush=True,
    )
    return choice


def choose(mode: str, need: Need, room: Room, *, window_shards: int | None) -> Choice:
    """The mode for what is needed and free: windows where `window_shards` asks for them, else resident or a map of a file.

    The latter two visit the images in one order, so that memory does not decide a result; `auto` takes the first that
    fits. Raises ParamsError that says what is needed, what is free and what fits.
    """
    on_gpu = room.gpu is not None and need.resident() <= room.gpu
    memory = room.gpu if on_gpu and room.gpu is not None else room.host
    candidates = {
        "resident": Choice("resident", on_gpu, need.resident(), memory),
        "memory_map": Choice("memory_map", False, need.whole, room.disk),
    }
    if window_shards is not None:
        candidates = {"window": Choice("window", False, need.window(window_shards), room.host)}
    fitting = {name: choice for name, choice in candidates.items() if choice.bytes <= choice.room}
    for name in candidates if mode == "auto" or window_shards is not None else (mode,):
        if name in fitting:
            return fitting[name]
    raise ParamsError(_misfit(mode, need, room, window_shards, list(fitting)))


def _misfit(mode: str, need: Need, room: Room, window_shards: int | None, fitting: list[str]) -> str:
    most = int(((room.host - need.beside) / need.shard - 1) / 2 / need.per_window)
    remedies = [f"feed.mode {name} fits" for name in fitting]
    if most >= 1:
        remedies.append(f"feed.window_shards: {most} fits (it visits the images in another order)")
    gpu = "" if room.gpu is None else f"{readable_bytes(room.gpu)} of GPU memory, "
    asked = f"feed.mode {mode}" if window_shards is None else f"feed.window_shards {window_shards}"
    window = (
        "" if window_shards is None else f", the windows {readable_bytes(need.window(window_shards))} of host memory"
    )
    return (
        f"params.yaml: {asked} does not fit the {need.what}: resident needs {readable_bytes(need.resident())} of memory, "
        "memory_map "
        f"{readable_bytes(need.whole)} of disk{window}; {gpu}{readable_bytes(room.host)} of host memory "
        f"(feed.budget_gb) and {readable_bytes(room.disk)} of disk may be used. "
        + ("; ".join(remedies) or "Raise feed.budget_gb" + need.remedy)
    )

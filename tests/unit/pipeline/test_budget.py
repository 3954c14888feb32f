"""Which way of feeding is chosen by what fits, and how much memory there is."""

import pytest
import torch

from pag_core.errors import ParamsError
from pag_core.pipeline.budget import Need, Room, available_host_memory, choose, measured_room

CPU = torch.device("cpu")
NEED = Need("pixels", 1000, 10, 100, 10, remedy=", or smaller images_per_shard")


@pytest.mark.parametrize(
    ("room", "mode", "on_gpu"),
    [
        (Room(gpu=None, host=1210, disk=0), "resident", False),
        (Room(gpu=None, host=1209, disk=1000), "memory_map", False),
        (Room(gpu=1210, host=0, disk=0), "resident", True),
        (Room(gpu=1209, host=1210, disk=0), "resident", False),
        (Room(gpu=1209, host=1209, disk=1000), "memory_map", False),
    ],
)
def test_the_automatic_choice_by_what_fits(room, mode, on_gpu):
    found = choose("auto", NEED, room, window_shards=None)
    assert (found.mode, found.on_gpu) == (mode, on_gpu) and found.bytes <= found.room
    assert choose(mode, NEED, room, window_shards=None) == found


@pytest.mark.parametrize("mode", ["auto", "resident", "memory_map"])
def test_windows_are_taken_where_they_are_asked_for_and_only_there(mode):
    """They visit the images in another order: free memory must not decide a result."""
    for room in (Room(None, 10_000, 10_000), Room(None, 510, 0)):
        assert choose(mode, NEED, room, window_shards=2).mode == "window"
    with pytest.raises(ParamsError, match=r"feed.window_shards: 2 fits \(it visits the images in another order\)"):
        choose("auto", NEED, Room(None, 510, 0), window_shards=None)


@pytest.mark.parametrize(
    ("mode", "window", "room", "words"),
    [
        (
            "resident",
            None,
            Room(None, 1209, 1000),
            ["feed.mode memory_map fits", "feed.window_shards: 5 fits", "0.00 MB"],
        ),
        ("memory_map", None, Room(None, 1210, 999), ["feed.mode resident fits"]),
        ("auto", 2, Room(None, 509, 0), ["feed.window_shards 2 does not fit", "feed.window_shards: 1 fits"]),
        ("auto", None, Room(None, 309, 0), ["Raise feed.budget_gb", "images_per_shard"]),
        ("resident", None, Room(1209, 1209, 0), ["of GPU memory", "feed.window_shards: 5 fits"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(mode, window, room, words):
    with pytest.raises(ParamsError) as caught:
        choose(mode, NEED, room, window_shards=window)
    for word in ["does not fit", *words]:
        assert word in str(caught.value)


def test_the_budget_is_half_of_what_is_free_or_as_stated(tmp_path, monkeypatch):
    monkeypatch.setattr("pag_core.pipeline.budget.available_host_memory", lambda: 8_000_000_000)
    assert measured_room(CPU, tmp_path, None, 1).host == 4_000_000_000
    assert measured_room(CPU, tmp_path, 3.0, 1).host == 3_000_000_000
    assert measured_room(CPU, tmp_path, 100.0, 1).host == 8_000_000_000
    # processes of one machine share it
    assert measured_room(CPU, tmp_path, 3.0, 2).host == 1_500_000_000
    assert measured_room(CPU, tmp_path, None, 1).gpu is None and measured_room(CPU, tmp_path, None, 1).disk > 0


def limit_group(folder, *, limit, used, released, version):
    names = {2: ("memory.max", "memory.current", "inactive_file"),
             1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}[version]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 600000\n{names[2]} {released}\n")


@pytest.mark.parametrize(("version", "line"), [(2, "0::{}\n"), (1, "5:cpu:/\n9:memory:{}\n")])
def test_the_tightest_limit_on_the_way_up_counts(tmp_path, version, line):
    """Of the own group and those around it (systemd, SLURM), or of the root, which a container sees as its own group."""
    own, cgroup = tmp_path / "own", tmp_path / "cgroup"
    tree = cgroup if version == 2 else cgroup / "memory"
    own.write_text(line.format("/job/step"))
    free = available_host_memory(cgroup, own)
    assert free > 1e8 and abs(free - available_host_memory(cgroup, tmp_path / "none")) < 1e9
    limit_group(
        tree / "job/step", limit="max" if version == 2 else 2**63 - 4096, used=700000, released=50000, version=version
    )
    assert available_host_memory(cgroup, own) > 1e8
    limit_group(tree / "job", limit=1000000, used=700000, released=50000, version=version)
    assert available_host_memory(cgroup, own) == 350000
    limit_group(tree / "job/step", limit=900000, used=700000, released=50000, version=version)
    assert available_host_memory(cgroup, own) == 250000
    limit_group(tree, limit=500000, used=700000, released=50000, version=version)
    assert available_host_memory(cgroup, own) == 0
    # what other jobs have is not looked at
    limit_group(tree, limit=10**15, used=0, released=0, version=version)
    own.write_text(line.format("/not/there"))
    assert available_host_memory(cgroup, own) > 1e8

"""Which way of feeding is chosen by what fits, and how much memory there is."""

import pytest
import torch

from pag_core.errors import ParamsError
from pag_core.gradient_store.budget import Need, Room, available_host_memory, choose, measured_room

CPU = torch.device("cpu")
NEED = Need(codes=1000, scales=10, shard=100, shards=10)


@pytest.mark.parametrize(
    ("room", "mode", "on_gpu"),
    [
        (Room(gpu=None, host=1110, disk=0), "resident", False),
        (Room(gpu=None, host=1109, disk=1000), "memory_map", False),
        (Room(gpu=1110, host=0, disk=0), "resident", True),
        (Room(gpu=1109, host=1110, disk=0), "resident", False),
        (Room(gpu=1109, host=1109, disk=1000), "memory_map", False),
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
            Room(None, 1109, 1000),
            ["feed.mode memory_map fits", "feed.window_shards: 4 fits", "0.00 MB"],
        ),
        ("memory_map", None, Room(None, 1110, 999), ["feed.mode resident fits"]),
        ("auto", 2, Room(None, 509, 0), ["feed.window_shards 2 does not fit", "feed.window_shards: 1 fits"]),
        ("auto", None, Room(None, 309, 0), ["Raise feed.budget_gb", "images_per_shard"]),
        ("resident", None, Room(1109, 1109, 0), ["of GPU memory", "feed.window_shards: 4 fits"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(mode, window, room, words):
    with pytest.raises(ParamsError) as caught:
        choose(mode, NEED, room, window_shards=window)
    for word in ["does not fit", *words]:
        assert word in str(caught.value)


def test_the_budget_is_half_of_what_is_free_or_as_stated(tmp_path, monkeypatch):
    monkeypatch.setattr("pag_core.gradient_store.budget.available_host_memory", lambda: 8_000_000_000)
    assert measured_room(CPU, tmp_path, None, 1).host == 4_000_000_000
    assert measured_room(CPU, tmp_path, 3.0, 1).host == 3_000_000_000
    assert measured_room(CPU, tmp_path, 100.0, 1).host == 8_000_000_000
    # processes of one machine share it
    assert measured_room(CPU, tmp_path, 3.0, 2).host == 1_500_000_000
    assert measured_room(CPU, tmp_path, None, 1).gpu is None and measured_room(CPU, tmp_path, None, 1).disk > 0


def test_a_containers_limit_counts(tmp_path):
    free = available_host_memory(tmp_path)
    assert free > 1e8
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_host_memory(tmp_path) > 1e8
    (tmp_path / "memory.max").write_text("1000000\n")
    assert available_host_memory(tmp_path) == 350000

"""What is left in .cache is shown, and goes only where nobody holds it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pag_core.gradient_store.feed import mapped_codes
from pag_core.pipeline import cache
from pag_core.pipeline.checkpoint import cache_root, run_folder
from pag_core.pipeline.locks import holding
from tests.samples import ROOT

HOLDING = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from pag_core.pipeline.checkpoint import run_folder
with run_folder("train", {"seed": 2}, torch.device("cpu")) as folder:
    folder.save_unit("first", {"done": 1})
    print(folder.path.name, flush=True)
    sys.stdin.read()
"""


class Codes:
    """One shard of int8 codes in memory."""

    shape, dtype, array = (2, 3), torch.int8, np.empty(0, np.int8)

    def __iter__(self):
        yield slice(0, 2), np.arange(6, dtype=np.int8).reshape(2, 3)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return cache_root()


def broken_off(seed):
    with pytest.raises(KeyboardInterrupt), run_folder("train", {"seed": seed}, torch.device("cpu")) as folder:
        folder.save_unit("first", {"done": 1})
        raise KeyboardInterrupt
    return folder.path


@pytest.mark.slow
def test_what_nobody_holds_goes_and_the_rest_stays(root):
    held_map, lost_map = root / "gradients-sbg-train-1.raw", root / "gradients-teacher-train-2.raw"
    left = broken_off(1)
    mapped = mapped_codes(Codes(), held_map)
    lost_map.write_bytes(b"of a process that is gone")
    with run_folder("sbg", {}, torch.device("cpu")):
        pass  # ended well: its lock is left
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(ROOT)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    held = root / holder.stdout.readline().strip()
    try:
        states = {entry.path.name: entry.held for entry in cache.entries(root)}
        assert {name for name, state in states.items() if state} == {held.name, held_map.name}
        assert {left.name, lost_map.name} <= states.keys() and any(name.startswith("sbg-") for name in states)
        removed = {entry.path.name for entry in cache.clear(root)}
        assert {left.name, lost_map.name} <= removed and not {held.name, held_map.name} & removed
        assert held.exists() and held_map.exists() and not left.exists() and not lost_map.exists()
        assert (held / "units/first.json").exists() and mapped.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not [path for path in (root / "locks").iterdir() if path.name.startswith("sbg-")]
    finally:
        holder.communicate()
    assert holder.returncode == 0 and not held.exists()


@pytest.mark.slow
def test_the_command_lists_and_clears(root):
    left = broken_off(1)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pag_core.pipeline.cache", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = run()
    assert left.exists() and "run folder" in listed and left.name in listed and "not in use" in listed
    assert "removed" in run("--clear") and not left.exists()
    assert "0 entries" in run()


def test_what_a_running_stage_removes_meanwhile_is_passed_over(root, monkeypatch):
    left = broken_off(1)
    walk = os.walk

    def with_one_that_is_gone(path):
        yield from walk(path)
        if path == left:
            yield str(path), [], ["renamed.partial"]

    monkeypatch.setattr(cache.os, "walk", with_one_that_is_gone)
    (entry,) = [entry for entry in cache.entries(root) if entry.kind == "run folder"]
    assert entry.path == left and entry.bytes == sum(file.stat().st_size for file in left.rglob("*") if file.is_file())


def test_an_unfinished_copy_goes_unless_its_writer_is_at_work(root):
    root.mkdir(parents=True)
    partial = root / ".gradients-sbg-train-0123.raw.x1_y.partial"
    partial.write_bytes(b"half")
    with holding(root / "locks" / "gradients-sbg-train.raw", "writing"):
        assert [(entry.kind, entry.held) for entry in cache.entries(root) if entry.path == partial] == [
            ("unfinished", True)
        ]
        assert partial not in [entry.path for entry in cache.clear(root)] and partial.exists()
    assert partial in [entry.path for entry in cache.clear(root)] and not partial.exists()


def test_work_begins_anew_after_it_was_cleared(root):
    left = broken_off(1)
    cache.clear(root)
    with run_folder("train", {"seed": 1}, torch.device("cpu")) as folder:
        assert folder.path == left and folder.load_unit("first") is None

"""Processes that share units of work: each unit once, a failure told, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.samples import ROOT

# a stage in miniature: units that say which process did them
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path[0] = {root!r}
import torch
from pag_core.checkpoint import run_folder
from pag_core.evaluation.units import finished_units
from pag_core.stage import stage

def unit(number):
    rank = os.environ.get("RANK", "0")
    Path(f"started-{{number}}-{{rank}}-{{os.getpid()}}").touch()
    if {failing!r} == rank:
        raise RuntimeError("planted")
    time.sleep({seconds})
    return {{"number": number, "rank": rank}}

with stage("miniature"), run_folder("miniature", {{}}, torch.device("cpu")) as folder:
    work = {{f"unit-{{number}}": (lambda number=number: unit(number)) for number in range(6)}}
    done = finished_units(folder, work, processes={processes}, what="units")
    print([result["number"] for result in done.values()], sorted({{result["rank"] for result in done.values()}}))
"""


def script(folder: Path, *, processes: int = 2, seconds: float = 0.5, failing: str = "") -> list[str]:
    path = folder / "miniature.py"
    path.write_text(SCRIPT.format(root=str(ROOT), processes=processes, seconds=seconds, failing=failing))
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "RANK", "WORLD_SIZE")}


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("processes", "ranks"), [(1, "['0']"), (2, "['0', '1']")])
def test_every_unit_is_done_once(tmp_path, processes, ranks):
    # units long enough for the companion to have loaded before they are all taken
    done = run(tmp_path, script(tmp_path, processes=processes, seconds=2 if processes > 1 else 0))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"[0, 1, 2, 3, 4, 5] {ranks}"]
    started = [path.name.split("-")[1] for path in tmp_path.glob("started-*")]
    assert sorted(started) == list("012345")
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["locks"]


def test_a_failing_companion_is_told_and_finished_units_are_kept(tmp_path):
    failed = run(tmp_path, script(tmp_path, failing="1", seconds=2))
    assert failed.returncode == 1
    assert "CompanionLost: process 1 of 2 ended with exit code 1" in failed.stderr
    assert "planted" in failed.stderr
    kept = {path.stem for path in (tmp_path / ".cache").glob("miniature-*/units/*.json")}
    assert kept
    before = set(tmp_path.glob("started-*"))
    again = run(tmp_path, script(tmp_path, seconds=2))
    assert again.returncode == 0, again.stderr
    redone = {f"unit-{path.name.split('-')[1]}" for path in set(tmp_path.glob("started-*")) - before}
    assert not redone & kept


def test_companions_end_with_the_process_that_started_them(tmp_path):
    process = subprocess.Popen(
        script(tmp_path, seconds=30),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (found := list(tmp_path.glob("started-*-1-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    companion = int(found[0].name.split("-")[-1])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{companion}").exists() and "Z" not in Path(f"/proc/{companion}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the companion lives on"
        time.sleep(0.1)

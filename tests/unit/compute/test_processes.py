"""Processes that share units of work: each unit once, a failure told, nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pag_core.compute import processes as processes_module
from pag_core.compute.processes import divide_cores, process_count
from pag_core.errors import RankLost
from pag_core.evaluation.units import finished_units
from pag_core.pipeline.checkpoint import RUN_FOLDER, RunFolder
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

# a stage in miniature: units that say which process did them
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path[0] = {root!r}
import torch
torch.set_num_threads(1)  # torchrun sets it so, and the number of threads belongs to the identity of a work folder
from pag_core.pipeline.checkpoint import run_folder
from pag_core.evaluation.units import finished_units
from pag_core.compute import processes
from pag_core.pipeline.stage import stage

def unit(number):
    rank = os.environ.get("RANK", "0")
    Path(f"started-{{number}}-{{rank}}-{{os.getpid()}}").touch()
    if {failing!r} == rank:
        while rank != "0" and not list(Path(".cache").glob("miniature-*/units/*.json")):
            time.sleep(0.02)
        raise RuntimeError("planted")
    # a further rank takes long to load where the machine is busy: one unit is finished, the others wait for it
    while {together} and rank == "0" and number > 0 and not list(Path().glob("started-*-1-*")):
        time.sleep(0.02)
    time.sleep({seconds} if number > 0 or not {together} else 0)
    return {{"number": number, "rank": rank}}

def main():
    if {stubborn}:  # as a main thread that is in a collective on a GPU
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        processes.SECONDS_TO_STOP = 0.5
    with stage("miniature", shared=True), run_folder("miniature", {{}}, torch.device("cpu")) as folder:
        work = {{f"unit-{{number}}": (lambda number=number: unit(number)) for number in range(6)}}
        done = finished_units(folder, work, processes={processes}, what="units")
        print([result["number"] for result in done.values()], sorted({{result["rank"] for result in done.values()}}))

if __name__ == "__main__":
    main()
"""


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def script(
    folder: Path,
    *,
    processes: int = 2,
    seconds: float = 0.5,
    failing: str = "",
    stubborn: bool = False,
    together: bool = False,
) -> list[str]:
    """`together`: this process goes on after its first unit when the other rank has begun one."""
    path = folder / "miniature.py"
    options = {"processes": processes, "seconds": seconds, "failing": failing, "stubborn": stubborn}
    path.write_text(SCRIPT.format(root=str(ROOT), together=together, **options))
    return [f"{forks()}/python", str(path)]


def environment() -> dict[str, str]:
    """This process's, without what DVC, torchrun or a work folder that a test opened here has put there."""
    told = ("DVC_ROOT", "RANK", "WORLD_SIZE", RUN_FOLDER)
    return {key: value for key, value in os.environ.items() if key not in told}


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )


def test_cores_are_counted_where_the_system_tells_no_limit(monkeypatch, cpu):
    """macOS has no sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    divided = []
    monkeypatch.setattr(torch, "set_num_threads", divided.append)
    assert process_count(None, cpu) == 6
    divide_cores(3)
    assert divided == [2]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "ranks"), [(1, "['0']"), (2, "['0', '1']")])
def test_every_unit_is_done_once(tmp_path, processes, ranks):
    done = run(tmp_path, script(tmp_path, processes=processes, seconds=0, together=processes > 1))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"[0, 1, 2, 3, 4, 5] {ranks}"]
    started = [path.name.split("-")[1] for path in tmp_path.glob("started-*")]
    assert sorted(started) == list("012345")
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["locks"]


@pytest.mark.slow
def test_the_ranks_of_torchrun_do_every_unit_once(tmp_path):
    # a killed run's claim, and its finished unit, which is not done again
    assert run(tmp_path, script(tmp_path, failing="0", processes=1)).returncode == 1
    (folder,) = (tmp_path / ".cache").glob("miniature-*")
    (folder / "units").mkdir()
    (folder / "units" / "unit-3.json").write_text('{"number": 3, "rank": "before"}')
    assert [path.name for path in (folder / "claims").iterdir()] == ["unit-0"]
    for path in tmp_path.glob("started-*"):
        path.unlink()
    python, name = script(tmp_path, processes=1, seconds=1)
    done = run(tmp_path, [python, *TORCHRUN, name])
    assert done.returncode == 0, done.stderr
    # rank 0 alone goes on after the units
    assert done.stdout.splitlines() == ["[0, 1, 2, 3, 4, 5] ['0', '1', 'before']"]
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("started-*")) == list("01245")
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["locks"]
    assert [path.name for path in (tmp_path / "timings").iterdir()] == ["miniature.json"]


@pytest.mark.slow
def test_a_failing_rank_of_torchrun_ends_the_run(tmp_path):
    python, name = script(tmp_path, failing="1", seconds=1)
    failed = run(tmp_path, [python, *TORCHRUN, name])
    assert failed.returncode != 0
    assert "planted" in failed.stderr and "ChildFailedError" in failed.stderr
    assert not failed.stdout and not (tmp_path / "timings").exists()


@pytest.mark.slow
def test_a_stage_that_cannot_share_its_work_refuses_torchrun(tmp_path):
    command = [f"{forks()}/python", *TORCHRUN, str(ROOT / "stages" / "figures.py")]
    refused = run(tmp_path, command)
    assert refused.returncode != 0
    assert "figures: LaunchRefused: torchrun started 2 processes of a stage that runs in one" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_the_processes_of_one_machine_are_counted(monkeypatch):
    from pag_core.compute.processes import processes_here

    assert (processes_here(None), processes_here(3)) == (1, 3)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "5"), ("WORLD_SIZE", "16"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert processes_here(None) == 8


@pytest.mark.parametrize(("done", "started"), [(0, [6]), (4, [2]), (5, []), (6, [])])
def test_no_more_processes_than_open_units_are_started(tmp_path, monkeypatch, done, started):
    counts = []

    def counted(count, device):
        counts.append(count)
        yield processes_module.Process(0, 1)

    monkeypatch.setattr(processes_module, "_started", counted)
    folder = RunFolder(tmp_path)
    work = {f"unit-{number}": (lambda number=number: {"number": number}) for number in range(6)}
    for name in list(work)[:done]:
        folder.save_unit(name, work[name]())
    found = finished_units(folder, work, processes=8, what="units")
    assert counts == started and [result["number"] for result in found.values()] == list(range(6))


def test_a_unit_that_nobody_finished_is_told(tmp_path):
    """As on machines that do not see one another's files: never a short result."""
    folder = RunFolder(tmp_path)
    work = {"there": lambda: {"number": 1}, "elsewhere": lambda: {"number": 2}}
    folder.forget_claims = lambda: None
    folder.claim("elsewhere")
    with pytest.raises(RankLost, match="no process has finished the unit elsewhere"):
        finished_units(folder, work, processes=1, what="units")
    assert folder.load_unit("there") == {"number": 1}


@pytest.mark.slow
def test_a_failing_rank_is_told_at_once_and_finished_units_are_kept(tmp_path):
    failed = run(tmp_path, script(tmp_path, failing="1", seconds=15, together=True))
    assert failed.returncode == 1
    # this process had more units to do
    assert len(list(tmp_path.glob("started-*-0-*"))) < 5
    assert "RankLost: process 1 of 2 ended with exit code 1" in failed.stderr
    assert "planted" in failed.stderr
    kept = {path.stem for path in (tmp_path / ".cache").glob("miniature-*/units/*.json")}
    assert kept
    before = set(tmp_path.glob("started-*"))
    again = run(tmp_path, script(tmp_path, seconds=0))
    assert again.returncode == 0, again.stderr
    redone = {f"unit-{path.name.split('-')[1]}" for path in set(tmp_path.glob("started-*")) - before}
    assert not redone & kept


@pytest.mark.slow
def test_work_that_cannot_be_interrupted_ends_too(tmp_path):
    failed = run(tmp_path, script(tmp_path, failing="1", seconds=20, stubborn=True, together=True))
    assert failed.returncode == 1
    assert "RankLost: process 1 of 2 ended with exit code 1" in failed.stderr
    assert not failed.stdout
    assert len(list(tmp_path.glob("started-*-0-*"))) < 5


def ranks_of(parent: int) -> list[int]:
    """The ranks that `parent` started; libraries that it loads start short-lived processes too."""
    found = []
    for process in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def lives(process):
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(tmp_path):
    process = subprocess.Popen(
        [sys.executable, *script(tmp_path, seconds=30)[1:]],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("started-*-1-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    rank = int(found[0].name.split("-")[-1])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while lives(rank):
        assert time.monotonic() < deadline, "the rank lives on"
        time.sleep(0.1)


@pytest.mark.slow
def test_ranks_leave_signals_to_rank_0_from_their_very_start(tmp_path):
    """A terminal sends Ctrl-C to all, also to a rank that still imports."""
    process = subprocess.Popen(
        [sys.executable, *script(tmp_path, seconds=0, together=True)[1:]],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (started := ranks_of(process.pid)):
        assert process.poll() is None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(started[0], number)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (0, "[0, 1, 2, 3, 4, 5] ['0', '1']\n"), errors

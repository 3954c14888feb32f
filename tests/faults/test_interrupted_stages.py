"""Stages, and DVC that runs them, that SIGTERM or Ctrl-C asks to end: saved, no process left, and the same bytes after."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.test_killed_stages import contents
from tests.fixtures.project_copy import SMALL, ProjectCopy, forks

pytestmark = pytest.mark.slow

OUTPUTS = {
    "diffusion": ["data/diffusion", "curves/diffusion"],
    "train": ["data/classifier", "metrics/training.json", "curves/classifier"],
    "autoattack": ["data/attacks/baseline_autoattack.json"],
}
NEVER = {"checkpoint_seconds": 10**6}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """An unbroken run, in which the clock alone never saves a checkpoint."""
    overrides = {
        **SMALL, **NEVER, "source": "cm", "train.epochs": 8, "diffusion.steps": 60, "autoattack.images": 6,
        "autoattack.images_per_shard": 1, "autoattack.radii": {"Linf": [0.1]},
    }  # fmt: skip
    project = ProjectCopy(tmp_path_factory.mktemp("a blank") / "pag", overrides)
    for stage in (["prepare"], ["heuristic", "cm"], ["diffusion"], ["train", "--baseline"], ["train"]):
        project.stage(*stage)
    project.stage("autoattack", "--baseline")
    yield project


def interrupt(project: ProjectCopy, command: list[str], number: int, *, group: bool, at_least: int) -> tuple[int, str]:
    """Send a signal, to the process or as a terminal to its group, when its bar is at `at_least`: exit code, what it said."""
    log = project.path / "said.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=project.path, env=project.environment(), stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + 600
    while not any(int(done) >= at_least for done in re.findall(r"(\d+)/\d+ \[", log.read_text(encoding="utf-8"))):
        assert time.monotonic() < deadline and process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.01)
    started = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if group else os.kill)(process.pid, number)
    code = process.wait(timeout=120)
    assert not psutil.wait_procs(started, timeout=30)[1], "a process is left"
    return code, log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "number", "group", "processes", "exit_code"),
    [
        ("diffusion", signal.SIGTERM, False, 1, 143),
        ("train", signal.SIGINT, True, 1, 130),
        ("train", signal.SIGINT, True, 2, 130),
        ("autoattack", signal.SIGINT, True, 2, 130),
    ],
)
def test_an_interrupted_stage_resumes_with_the_same_bytes(
    finished: ProjectCopy, name: str, number: int, group: bool, processes: int, exit_code: int
) -> None:
    command = [sys.executable, f"stages/{name}.py", *(["--baseline"] if name == "autoattack" else [])]
    finished.set({"processes": processes})
    if name == "train" and processes > 1:  # rounded otherwise than by one
        finished.run(*command)
    if processes == 1:  # the whole of its group
        command[0] = f"{forks()}/python"
    expected = contents(finished.path, OUTPUTS[name])
    code, said = interrupt(finished, command, number, group=group, at_least=2)
    assert code == exit_code, said[-2000:]
    assert f"stopped by {number.name}; the same command resumes" in said and "Traceback" not in said, said[-3000:]
    pattern = "autoattack*/units/*.json" if name == "autoattack" else "*/checkpoint.pt"
    assert list((finished.path / ".cache").glob(pattern)), "nothing to go on from"
    again = finished.run(*command)
    begun = re.search(r"(\d+)/\d+ \[", again.stderr)
    assert begun is not None and (name == "autoattack" or int(begun[1]) > 0), again.stderr[:500]
    assert contents(finished.path, OUTPUTS[name]) == expected


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_pipeline_that_is_interrupted_saves_too(finished: ProjectCopy, number: int, group: bool) -> None:
    """DVC hands on nothing when it is ended: the stage notices."""
    # so many epochs that none of the runs comes to its end, however fast the machine and however late the stage looks
    finished.set({"processes": 1, "train.epochs": 100_000, "train.weight_decay": number / 1e5})
    finished.run("dvc", "repro", "check", "stages/gradients/dvc.yaml:heuristic@cm")
    command = [sys.executable, "-m", "dvc", "repro", "stages/gradients/dvc.yaml:train"]
    code, _ = interrupt(finished, command, number, group=group, at_least=2)
    assert code != 0
    wait_for_checkpoint(finished)
    assert f"stopped by {number.name if group else 'SIGTERM'}" in (finished.path / "said.txt").read_text()
    code, said = interrupt(finished, command, signal.SIGINT, group=True, at_least=2)
    begun = re.search(r"(\d+)/\d+ \[", said)
    assert code != 0 and begun is not None and int(begun[1]) >= 2 and "waiting for it" not in said, said[:3000]
    shutil.rmtree(wait_for_checkpoint(finished).parent)


def wait_for_checkpoint(project: ProjectCopy) -> Path:
    deadline = time.monotonic() + 60
    while not (found := list((project.path / ".cache").glob("*/checkpoint.pt"))):
        assert time.monotonic() < deadline, "no checkpoint was saved"
        time.sleep(0.1)
    (checkpoint,) = found
    return checkpoint

"""SIGTERM and Ctrl-C within a stage: saved where it can be, at once elsewhere, and what is said."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pag_core.compute.interruption import Interrupted, interruptible
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import CheckpointClock
from pag_core.pipeline.stage import stage
from tests.fixtures.samples import ROOT

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
both = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in CODES}
    yield tmp_path
    assert {number: signal.getsignal(number) for number in CODES} == before


def send(number):
    os.kill(os.getpid(), number)


@both
def test_a_stage_without_a_loop_ends_at_once(number, place, capsys):
    with pytest.raises(SystemExit) as caught, stage("figures"):
        send(number)
        time.sleep(60)
    assert caught.value.code == CODES[number]
    assert f"figures: stopped by {number.name}; the same command resumes" in capsys.readouterr().err
    assert not (place / "timings").exists()


@both
def test_a_loop_finishes_its_step_and_saves(number, place, cpu, capfd):
    folder, steps = RunFolder(place), 0
    with pytest.raises(SystemExit) as caught, stage("train"), CheckpointClock(folder, 1e9) as clock:
        for steps in range(1, 10):
            if steps == 3:
                send(number)
                assert clock.interrupted
            clock.tick(lambda: {"step": steps})  # noqa: B023
    assert caught.value.code == CODES[number] and steps == 3
    assert folder.load_checkpoint(cpu) == {"step": 3}
    assert "Saving a checkpoint before the end; a second Ctrl-C ends at once." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "saved"),
    [
        ((signal.SIGINT, signal.SIGINT), None),
        # a cluster tells torchrun, which tells its ranks, and these; DVC's end, or its queue, tells a stage again
        ((signal.SIGTERM, signal.SIGTERM), {"step": 1}),
        ((signal.SIGTERM, signal.SIGINT), {"step": 1}),
        ((signal.SIGINT, signal.SIGTERM), {"step": 1}),
    ],
)
def test_a_second_ctrl_c_ends_a_long_step_at_once_and_nothing_else(place, cpu, numbers, saved):
    folder = RunFolder(place)
    with pytest.raises(SystemExit) as caught, stage("train"), CheckpointClock(folder, 1e9) as clock:
        for number in numbers:
            send(number)
        clock.tick(lambda: {"step": 1})
    assert caught.value.code == CODES[numbers[0]] and folder.load_checkpoint(cpu) == saved


def test_a_repeated_sigterm_does_not_break_what_ends(place):
    ended = False
    with pytest.raises(SystemExit) as caught, stage("figures"):
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            ended = True
    assert caught.value.code == 143 and ended


def test_what_follows_the_loop_ends_at_once_again(place):
    with pytest.raises(Interrupted), interruptible():
        with CheckpointClock(RunFolder(place), 1e9):
            pass
        send(signal.SIGTERM)


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


ORPHAN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pag_core.pipeline.stage import stage
with stage("train"):
    print("begun", flush=True)
    time.sleep(60)
"""


# what DVC does: a shell, with its variable. A shell that has no more to do than the stage is replaced by it, or is not (dash)
DVC = """
import os, subprocess, sys
subprocess.run(["/bin/sh", "-c", sys.argv[1], "sh", *sys.argv[2:]], env={**os.environ, "DVC_STAGE": "train"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ['exec "$@"', '"$@"; echo over', """sh -c '"$@"; echo over' sh "$@"; echo over"""])
def test_a_stage_ends_when_the_dvc_that_started_it_is_gone(place, shell):
    """DVC dies of SIGTERM without a word to the stage that it runs."""
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC, shell, sys.executable, "-c", ORPHAN, str(ROOT)],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert dvc.stdout.readline() == "begun\n"
    dvc.kill()
    _, said = dvc.communicate(timeout=30)  # until the stage has closed its end
    assert "train: stopped by SIGTERM" in said

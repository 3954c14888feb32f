"""Work in progress survives a kill, and is never taken up under other conditions."""

import os
import subprocess
import time

import pytest
import torch

from pag_core.compute import processes as processes_module
from pag_core.errors import TrainingDiverged
from pag_core.pipeline import checkpoint
from pag_core.pipeline.checkpoint import RunFolder, run_folder
from pag_core.pipeline.loop import CheckpointClock, LossWatch
from pag_core.pipeline.stage import OpenStage
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    return tmp_path / "repository" / ".cache"


def test_checkpoint_round_trip(tmp_path, cpu):
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint(cpu) is None
    state = {
        "tensor": torch.randn(3, dtype=torch.float64),
        "step": 7,
        "curve": [{"loss": 0.5}],
        "nested": {"a": [1, None]},
    }
    folder.save_checkpoint({"step": 1})
    folder.save_checkpoint(state)
    loaded = folder.load_checkpoint(cpu)
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert loaded == state
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def damage(whole, how):
    if how == "truncated":
        return whole[: len(whole) // 2]
    if how == "flipped":
        middle = bytearray(whole)
        # inside the bytes of the tensor, of which there are 80,000
        middle[len(whole) // 2] ^= 1
        return bytes(middle)
    return {"empty": b"", "text": b"this is no checkpoint"}[how]


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "flipped",
        "text",
    ],
)
def test_an_unreadable_checkpoint_is_moved_aside(tmp_path, cpu, capsys, how):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"tensor": torch.randn(20_000)})
    path = tmp_path / "checkpoint.pt"
    broken = damage(path.read_bytes(), how)
    path.write_bytes(broken)
    assert folder.load_checkpoint(cpu) is None
    assert not path.exists()
    assert (tmp_path / "checkpoint.unreadable").read_bytes() == broken
    assert "is damaged" in capsys.readouterr().out
    assert folder.load_checkpoint(cpu) is None


def test_an_interrupted_save_keeps_the_last_checkpoint(tmp_path, cpu, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"step": 1})

    def interrupted(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)  # written, and not yet renamed
        with pytest.raises(KeyboardInterrupt):
            folder.save_checkpoint({"step": 2})
    assert folder.load_checkpoint(cpu) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_units_round_trip(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.load_unit("Linf-8over255-0") is None
    folder.save_unit("Linf-8over255-0", {"robust": 3, "after": {"square": 3}})
    folder.save_unit("other", {"robust": None})
    assert folder.load_unit("Linf-8over255-0") == {"robust": 3, "after": {"square": 3}}
    assert folder.load_unit("other") == {"robust": None}


def test_the_folder_lies_in_the_main_repository_and_goes_when_done(root, cpu):
    with run_folder("stage", {"seed": 1}, cpu) as folder:
        assert folder.path.parent == root
        assert folder.path.name.startswith("stage-")
        folder.save_checkpoint({"step": 1})
    assert not folder.path.exists()


def test_the_folder_stays_after_an_error_and_is_found_again(root, cpu):
    with pytest.raises(TrainingDiverged), run_folder("stage", {"seed": 1}, cpu) as folder:
        folder.save_checkpoint({"step": 5})
        raise TrainingDiverged
    with run_folder("stage", {"seed": 1}, cpu) as again:
        assert again.path == folder.path
        assert again.load_checkpoint(cpu) == {"step": 5}


def test_other_conditions_give_another_folder(root, cpu, monkeypatch):
    def place(stage="stage", identity=None, device=cpu):
        with run_folder(stage, identity or {"seed": 1, "params": {"a": 1}}, device) as folder:
            return folder.path

    first = place()
    assert place() == first
    others = [
        place(stage="other"),
        place(identity={"seed": 2, "params": {"a": 1}}),
        place(identity={"seed": 1, "params": {"a": 2}}),
        place(identity={"seed": 1, "params": {"a": 1}, "dataset": "f"}),
    ]
    monkeypatch.setattr(checkpoint, "device_description", lambda device: "another GPU")
    others.append(place())
    monkeypatch.undo()
    monkeypatch.setenv("DVC_ROOT", str(root.parent))
    monkeypatch.setattr(checkpoint, "versions", lambda: {"torch": "99"})
    others.append(place())
    assert len({first, *others}) == 1 + len(others)


def test_without_dvc_the_folder_lies_here(tmp_path, monkeypatch, cpu):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with run_folder("stage", {}, cpu) as folder:
        assert folder.path.resolve().parent == tmp_path / ".cache"


SECOND = """
import sys, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from pag_core.pipeline import checkpoint
with checkpoint.run_folder("stage", {"seed": 1}, torch.device("cpu")) as folder:
    Path(sys.argv[2]).write_text("entered" if folder.path.exists() else "gone")
"""


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_of_one_identity_exclude_each_other(root, tmp_path, cpu):
    entered, output = tmp_path / "entered", tmp_path / "output"
    with run_folder("stage", {"seed": 1}, cpu) as folder:
        with output.open("w") as file:
            second = subprocess.Popen(
                [f"{forks()}/python", "-c", SECOND, str(ROOT), str(entered)], stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            wait_for(lambda: second.poll() is not None or "waiting for it" in output.read_text())
            time.sleep(0.3)
            assert second.poll() is None, output.read_text()
            assert not entered.exists()
        except BaseException:
            second.kill()
            raise
    assert second.wait(timeout=300) == 0, output.read_text()
    assert entered.read_text() == "entered"
    assert not folder.path.exists()


def test_the_clock_saves_only_when_it_is_time(tmp_path, cpu, monkeypatch):
    folder, now = RunFolder(tmp_path), [100.0]
    monkeypatch.setattr("pag_core.pipeline.loop.time.monotonic", lambda: now[0])
    clock = CheckpointClock(folder, 10)
    saved = []
    for moment in (105.0, 109.9, 110.0, 115.0, 120.5):
        now[0] = moment
        clock.tick(lambda moment=moment: {"at": moment})
        saved.append((folder.load_checkpoint(cpu) or {}).get("at"))
    assert saved == [None, None, 110.0, 110.0, 120.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_watch_names_the_first_bad_step(bad):
    watch = LossWatch("classifier")
    for step in (11, 12):
        watch.add(step, torch.tensor(0.5), torch.tensor(float("nan")))
    rows = watch.flush()
    assert [row[0] for row in rows] == [0.5, 0.5]
    assert watch.flush() == []
    for step, loss in ((13, 1.0), (14, bad), (15, bad)):
        watch.add(step, torch.tensor(loss))
    with pytest.raises(TrainingDiverged, match=r"classifier: the loss of step 14 is .*Lower the learning rate"):
        watch.flush()


def test_a_record_states_the_threads_that_each_of_several_processes_has(make_params, monkeypatch):
    """They decide how sums are rounded, and whether a killed run may go on."""
    before = torch.get_num_threads()
    monkeypatch.setattr(processes_module.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    try:
        described = {}
        for count in (1, 2, 3, 100):
            opened = OpenStage("some", ("seed",))
            opened.all_params = make_params({"threads": 4, "device": "cpu"})
            opened.divide_cores(count)
            described[count] = opened.provenance(inputs={})["device"].rsplit(", ")[-1]
        assert described == {1: "4 threads", 2: "4 threads", 3: "2 threads", 100: "1 thread"}
    finally:
        torch.set_num_threads(before)

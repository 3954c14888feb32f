"""kill -9 in each long stage at three moments, each run going on from the last checkpoint: it ends in the same bytes."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.project_copy import SMALL, ProjectCopy, forks

pytestmark = pytest.mark.slow

# stage: (command, what it makes, glob of the work in progress whose changes are counted)
STAGES = {
    "diffusion": (["stages/diffusion.py"], ["data/diffusion", "curves/diffusion"], "diffusion-*/checkpoint.pt"),
    "sbg": (["stages/sbg.py"], ["data/gradients/sbg.zarr", "metrics/diffusion.json"], "sbg-*/units/*.json"),
    "sbg_online": (
        ["stages/sbg.py", "--online"],
        ["data/gradients/sbg_online.zarr", "metrics/diffusion_online.json"],
        "sbg_online-*/units/*.json",
    ),
    "train": (
        ["stages/train.py"],
        ["data/classifier", "curves/classifier"],
        "classifier-*/checkpoint.pt",
    ),
    "autoattack": (["stages/autoattack.py"], ["metrics/autoattack.json"], "autoattack_classifier-*/units/*.json"),
    "foolbox": (["stages/foolbox.py"], ["metrics/foolbox.json"], "foolbox_classifier-*/units/*.json"),
    "masking": (
        ["stages/masking.py"],
        ["metrics/masking.json", "metrics/details/masking.json"],
        "masking_classifier_baseline-*/units/*.json",
    ),
    "toy": (["stages/toy.py"], ["data/toy", "metrics/toy.json"], "toy-*/units/*.json"),
}
KILLS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """An unbroken run of every stage, by hand."""
    overrides = {
        **SMALL,
        "gradient_store.images_per_shard": 64,
        # several shards of them too: they are all that sbg_online distills
        "gradient_store.held_out_images": 384,
        # many short units: at this radius no image stands long
        "autoattack.radii": {"Linf": [0.5]},
        "autoattack.images": 8,
        "autoattack.images_per_shard": 1,
        # so many that an accuracy tells one attack from another
        "masking.images": 60,
    }
    project = ProjectCopy(tmp_path_factory.mktemp("unbroken"), overrides)
    project.stage("toy")
    project.stage("prepare")
    for name in ("diffusion", "sbg"):
        project.stage(name)
    project.stage("sbg", "--online")
    project.stage("train", "--baseline")
    project.stage("train")
    for name in ("autoattack", "foolbox"):
        project.stage(name, "--baseline")
        project.stage(name)
    project.stage("masking")
    yield project


def contents(root: Path, names: list[str]) -> dict[str, bytes]:
    """Every file below the named outputs by its path."""
    files = [
        path
        for name in names
        for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))
    ]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


def kill_after(project: ProjectCopy, command: list[str], pattern: str, changes: int) -> bool:
    """Start a stage and kill -9 it after the files of `pattern` changed `changes` times; False if it ended before."""
    process = subprocess.Popen(
        [f"{forks()}/python", *command],
        cwd=project.path,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: set[tuple[str, int]] = set()
    deadline = time.monotonic() + 600
    while process.poll() is None:
        assert time.monotonic() < deadline, f"{command} made no {pattern}"
        for path in (project.path / ".cache").glob(pattern):
            try:
                seen.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        if len(seen) >= changes:
            process.send_signal(signal.SIGUSR1)  # handed on as SIGKILL
            assert process.wait() == -signal.SIGKILL
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("name", STAGES)
def test_reruns_after_kills_give_the_same_bytes(finished: ProjectCopy, name: str) -> None:
    command, outputs, pattern = STAGES[name]
    expected = contents(finished.path, outputs)
    assert expected
    for output in outputs:
        path = finished.path / output
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for kill in range(KILLS):
        # the next change of its own, beside what the run that was killed before it left
        there = len(list((finished.path / ".cache").glob(pattern)))
        assert kill_after(finished, command, pattern, there + 1), f"{name} ended before its kill {kill + 1}"
        left = contents(finished.path, [output for output in outputs if not output.startswith("curves/")])
        assert not left or left == {key: expected[key] for key in left}, "an output of a killed run is not whole"
        assert list((finished.path / ".cache").glob(pattern)), "nothing to go on from"
    done = finished.run(sys.executable, *command)
    assert contents(finished.path, outputs) == expected, f"{name}: {done.stderr[-500:]}"


def test_rerun_takes_up_the_checkpoint(finished: ProjectCopy) -> None:
    """The rerun does not begin anew: its progress bar starts where the checkpoint is."""
    assert kill_after(finished, ["stages/diffusion.py"], "diffusion-*/checkpoint.pt", 2)
    done = finished.stage("diffusion")
    shown = re.findall(rf"(\d+)/{SMALL['diffusion.steps']} ", done.stderr)
    assert shown and int(shown[0]) >= 50, done.stderr[:500]

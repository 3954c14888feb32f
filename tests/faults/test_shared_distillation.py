"""Several processes at one store: the same bytes as one makes, and never a short store when one of them is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pag_core.compute.processes import usable_cores
from tests.fixtures.project_copy import SMALL, ProjectCopy
from tests.unit.compute.test_processes import ranks_of

pytestmark = pytest.mark.slow

STORE = "data/gradients/sbg.zarr"
CORES = usable_cores()
COMMAND = [sys.executable, "stages/sbg.py"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """A diffusion model, and shards enough for a further rank to get some after it has started."""
    overrides = {
        **SMALL, "gradient_store.images_per_shard": 16, "gradient_store.images_per_chunk": 16, "sbg.draws": 4,
    }  # fmt: skip
    project = ProjectCopy(tmp_path_factory.mktemp("shared"), overrides)
    project.stage("prepare")
    project.stage("diffusion")
    yield project


def store_bytes(project: ProjectCopy) -> dict[str, bytes]:
    root = project.path / STORE
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(project: ProjectCopy) -> dict[str, bytes]:
    """The store as one process makes it."""
    project.set({"processes": 1, "threads": max(1, CORES // 2)})
    project.stage("sbg")
    return store_bytes(project)


def test_two_processes_make_the_same_bytes(project: ProjectCopy, alone: dict[str, bytes]) -> None:
    shutil.rmtree(project.path / STORE)
    # two have half of the threads each, and the manifest says so
    project.set({"processes": 2, "threads": CORES})
    project.stage("sbg")
    assert store_bytes(project) == alone


def test_a_lost_rank_ends_the_run_and_a_rerun_completes_the_store(
    project: ProjectCopy, alone: dict[str, bytes]
) -> None:
    shutil.rmtree(project.path / STORE)
    project.set({"processes": 2, "threads": CORES})
    process = subprocess.Popen(
        COMMAND,
        cwd=project.path,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    # until both have claimed shards: a rank claims its first seconds after rank 0
    while not (started := ranks_of(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    before = len(list((project.path / ".cache").glob("sbg-*/units/*.json")))
    while len(list((project.path / ".cache").glob("sbg-*/units/*.json"))) < before + 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(started[0], signal.SIGKILL)
    _, message = process.communicate(timeout=600)
    assert process.returncode == 1 and "RankLost: process 1 of 2 ended with exit code -9" in message, message[-2000:]
    assert "Traceback" not in message and not (project.path / STORE).exists()
    assert list((project.path / ".cache").glob("sbg-*/units/*.json"))
    project.stage("sbg")
    assert store_bytes(project) == alone

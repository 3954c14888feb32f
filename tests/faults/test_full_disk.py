"""A disk that fills up: the stage says so, and the old output stays whole."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_killed_stages import contents
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow


def _limit_file_size() -> None:
    # a write beyond the limit fails as one to a full disk does
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    copy = ProjectCopy(tmp_path_factory.mktemp("full"), {**SMALL})
    copy.stage("prepare")
    copy.stage("heuristic", "nn")
    return copy


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["stages/prepare.py"], "data/digits.zarr"),
        (["stages/heuristic.py", "nn"], "data/gradients/nn.zarr"),
    ],
)
def test_old_output_stays_whole(project: ProjectCopy, command: list[str], output: str) -> None:
    before = contents(project.path, [output])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=project.path,
        env=project.environment(),
        capture_output=True,
        text=True,
        preexec_fn=_limit_file_size,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr, done.stderr[-1000:]
    assert contents(project.path, [output]) == before
    parents = {Path(output).parent, Path("metrics"), Path()}
    assert not [path for parent in parents for path in (project.path / parent).glob(".*.partial")]

"""Two runs from scratch with the same inputs give the same bytes of metrics, without DVC as well."""

from pathlib import Path

import pytest

from tests.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow


def _run_by_hand(path: Path) -> dict[str, bytes]:
    project = ProjectCopy(path, {**SMALL, "train.epochs": 2})
    project.stage("prepare")
    project.stage("diffusion")
    project.stage("sbg")
    project.stage("train", "--baseline")
    project.stage("train")
    for name in ("autoattack", "foolbox"):
        project.stage(name, "--baseline")
        project.stage(name)
    project.stage("masking")
    project.stage("pag_score")
    return project.metrics_bytes()


def test_two_runs_from_scratch_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (_run_by_hand(tmp_path / name) for name in ("first", "second"))
    detailed = {"training", "autoattack", "foolbox", "masking", "pag_score"}
    assert set(first) == {f"{n}.json" for n in detailed | {"diffusion"}} | {f"details/{n}.json" for n in detailed}
    assert first == second

"""The toy experiment through DVC, at few epochs: a command of its own, a figure, and the same bytes in every run.

That the main pipeline does not run it is a part of test_pipeline.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

TOY = "stages/toy/dvc.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """One project for the whole module: the tests below run in order."""
    yield ProjectCopy(tmp_path_factory.mktemp("project"), SMALL)


def test_its_own_command_makes_metrics_and_figure(project: ProjectCopy) -> None:
    done = project.run("dvc", "repro", TOY)
    assert stages_run(done.stdout) == ["code", "toy"]
    found = project.metrics("toy")
    by_seed = json.loads((project.path / "data/toy/results.json").read_text(encoding="utf-8"))["accuracy"]
    assert found["published"] == {"vanilla": {"clean": 1.0, "pgd": 0.0}, "nn": {"clean": 1.0, "pgd": 0.755}}
    for method in ("vanilla", "nn"):
        assert set(by_seed[method]) == {"3407", "3408"}
        for kind in ("clean", "pgd", "exact"):
            values = [by_seed[method][seed][kind] for seed in ("3407", "3408")]
            assert found[method][kind]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
            assert (found[method][kind]["lowest"], found[method][kind]["highest"]) == (min(values), max(values))
        for accuracy in by_seed[method].values():
            assert 1 >= accuracy["clean"] >= accuracy["pgd"] >= accuracy["exact"] >= 0
    assert (project.path / "data/toy/decision_boundary.png").read_bytes().startswith(b"\x89PNG")
    assert stages_run(project.run("dvc", "repro", TOY).stdout) == []


def test_a_run_by_hand_elsewhere_gives_the_same_bytes(project: ProjectCopy, tmp_path: Path) -> None:
    by_hand = ProjectCopy(tmp_path, SMALL)
    by_hand.stage("toy")
    for name in ("metrics/toy.json", "data/toy/results.json", "data/toy/decision_boundary.png"):
        assert (by_hand.path / name).read_bytes() == (project.path / name).read_bytes(), name


def test_only_its_own_parameters_rebuild_it(project: ProjectCopy) -> None:
    project.set({"train.epochs": 2, "lambda": 1.0})
    assert stages_run(project.run("dvc", "repro", TOY).stdout) == []
    project.set({"toy.lambda": 0.5})
    assert stages_run(project.run("dvc", "repro", TOY).stdout) == ["toy"]

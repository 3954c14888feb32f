"""Score-based gradients without a full store, through DVC: some classes of each image, an address, the teacher in the step."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

MADE = {"code", "prepare", "check", "train", "baseline", "pag_score", "heuristic@none", "diffusion"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """One project for the whole module: the tests below run in order, each going on from the last."""
    yield ProjectCopy(tmp_path_factory.mktemp("project"), SMALL)


def manifest(project: ProjectCopy, source: str) -> dict:
    return json.loads((project.path / f"data/gradients/{source}.zarr/manifest.json").read_text(encoding="utf-8"))


def measured(project: ProjectCopy) -> dict:
    """All metrics but where they came from, which names the store."""
    found = {name: json.loads(content) for name, content in project.metrics_bytes().items()}
    return {name: {key: value for key, value in part.items() if key != "provenance"} for name, part in found.items()}


def test_the_teacher_is_asked_in_the_step(project: ProjectCopy) -> None:
    project.set({"source": "sbg_online", "sbg.timestep": [180, 220], "train.ema_decay": 0.9})
    done = project.run("dvc", "repro", "pag_score")
    assert set(stages_run(done.stdout)) == MADE | {"sbg_online"}
    made = manifest(project, "sbg_online")
    assert made["kind"] == "online" and made["images"] == {"test": 20}
    assert project.metrics("diffusion_online")["timestep"] == [180, 220]
    assert {"class means", "sbg_online"} == set(project.metrics("details/pag_score")["model"])
    card = json.loads((project.path / "data/classifier/card.json").read_text(encoding="utf-8"))
    assert card["provenance"]["inputs"]["gradient store"] == made["checksum"]
    curve = (project.path / "curves/classifier/plots/metrics/alignment.tsv").read_text(encoding="utf-8")
    assert curve.count("\n") == 4


def test_another_teacher_trains_anew(project: ProjectCopy) -> None:
    project.set({"diffusion.steps": 121})
    made = project.run("dvc", "repro", "stages/gradients/dvc.yaml:sbg_online")
    assert stages_run(made.stdout) == ["check", "diffusion", "sbg_online"]
    listed = project.run("dvc", "repro", "--dry", "pag_score")
    # what measures the classifier follows if it differs
    assert stages_run(listed.stdout) == ["train"]


def test_some_classes_of_each_image_at_an_address(project: ProjectCopy, tmp_path: Path) -> None:
    changes = {"gradient_store.classes_per_image": 4, "gradient_store.address": f"file://{tmp_path}/bucket"}
    project.set({"source": "sbg", **changes})
    done = project.run("dvc", "repro", "pag_score")
    assert set(stages_run(done.stdout)) == {"check", "sbg", "train", "pag_score"}
    assert "resident in host memory" in done.stdout and "and 4 classes each" in done.stdout
    made = manifest(project, "sbg")
    assert made["kind"] == "sparse" and made["address"].startswith(f"file://{tmp_path}/bucket/sbg-")
    assert {path.name for path in (project.path / "data/gradients/sbg.zarr").rglob("*") if path.is_file()} == {
        "manifest.json",
        "zarr.json",
    }
    whole = measured(project)
    # a copy here gives the same training
    project.set({"gradient_store.address": None})
    assert set(stages_run(project.run("dvc", "repro", "pag_score").stdout)) == {"check", "sbg", "train", "pag_score"}
    assert measured(project) == whole

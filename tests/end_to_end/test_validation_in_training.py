"""A training that validates as it goes, and keeps its best weights: what it says, and what depends on it."""

import pytest

from pag_core.pipeline.artifacts import read_json
from pag_core.pipeline.curves import read_curves
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

CHANGES = {"train.epochs": 4, "train.validate_every": 1, "train.keep": "best", "train.best_by": "clean", "threads": 1}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = ProjectCopy(tmp_path_factory.mktemp("validating") / "pag", {**SMALL, "source": "none", **CHANGES})
    project.stage("prepare")
    project.stage("train", "--baseline")
    project.stage("validation", "--baseline")
    return project


def test_what_is_kept_is_what_the_curve_has_at_its_epoch(project):
    """The stage that measures afterwards loads the weights from disk and finds, to the digit, what the training found."""
    curves = read_curves(project.path / "curves/baseline")
    card = read_json(project.path / "data/baseline/card.json")
    clean = dict(curves["validation_clean"])
    assert list(clean) == [1, 2, 3, 4] and card["kept"] == {
        "epoch": card["kept"]["epoch"],
        "epochs": 4,
        "best_by": "clean",
    }
    assert clean[card["kept"]["epoch"]] == max(clean.values())
    found = read_json(project.path / "data/baseline_training.json")
    assert found["kept"] == card["kept"] and "validation_clean" not in found["train"]
    (proxy,) = (value for name, value in found["validation"].items() if name != "clean")
    assert found["validation"]["clean"] == clean[card["kept"]["epoch"]]
    for norm in ("L2", "Linf"):
        of_norm = [value for setting, value in proxy.items() if setting.startswith(f"{norm} ")]
        assert dict(curves[f"validation_{norm}"])[card["kept"]["epoch"]] == pytest.approx(sum(of_norm) / len(of_norm))


def test_dvc_trains_again_after_a_change_of_validation_only_where_training_validates(project):
    """The same edit, in a training with curves and in one without."""
    images = SMALL["validation.images"]
    for every, expected in ((0, False), (1, True)):
        project.set({"train.keep": "last", "train.validate_every": every, "validation.images": images})
        project.run("dvc", "repro", "baseline_validation")
        project.set({"validation.images": images - 1})
        again = stages_run(project.run("dvc", "repro", "baseline_validation").stdout)
        assert ("baseline" in again) == expected and "baseline_validation" in again

"""The pipeline through DVC, at a small budget: what runs, what is taken from the cache, and what comes out."""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pag_core.evaluation.attacks import FOOLBOX_NAMES
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

SBG = "stages/gradients/dvc.yaml:sbg"
AFTER_TRAINING = {"train", "validation", "autoattack", "foolbox", "masking", "pag_score", "figures", "report"}
# radii at which every image falls to the first attack: the others take seconds a radius, and are tested elsewhere; and so
# many images for the judge that it sees more in one model than in the other
QUICK = {**SMALL, "pag_score.judged_images": 20}
HEADLINES = ("training", "autoattack", "foolbox", "masking", "pag_score", "diffusion")
BEFORE = {"code", "prepare", "check", "baseline", "baseline_validation", "baseline_autoattack", "baseline_foolbox"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """One project for the whole module: the tests below run in order, each going on from the last."""
    yield ProjectCopy(tmp_path_factory.mktemp("project"), QUICK)


def test_first_run_makes_every_artifact(project: ProjectCopy) -> None:
    # those of the baseline are the same programs
    before = project.run("dvc", "repro", *(name for name in sorted(BEFORE) if name.startswith("baseline_")))
    # the others as they are started anywhere: each imports what it needs itself
    done = project.run("dvc", "repro", forked=False)
    ran = {*stages_run(before.stdout), *stages_run(done.stdout)}
    assert ran == BEFORE | AFTER_TRAINING | {"diffusion", "sbg", "heuristic@none"}
    page = (project.path / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and "data:image/png;base64," in page
    autoattack = project.metrics("autoattack")
    assert autoattack["attack"] == "standard" and autoattack["images"] == 2
    for who in ("model", "baseline"):
        assert {"clean", "L2 3", "Linf 0.6"} == set(autoattack[who])
        assert autoattack[who]["L2 3"] <= autoattack[who]["clean"] <= 1
        details = project.metrics("details/autoattack")[who]
        assert autoattack[who].items() <= details.items()
        assert set(details) - set(autoattack[who]) == {
            "verdicts", "per_attack", "disagreements", "recounted", "warnings"
        }  # fmt: skip
    assert set(project.metrics("foolbox")) == {"Foolbox", "Foolbox of baseline"}
    foolbox = project.metrics("details/foolbox")
    assert {"clean", *FOOLBOX_NAMES} <= foolbox["model"].keys()
    assert foolbox["model"]["EADAttack"]["None"] <= foolbox["model"]["EADAttack"]["L1 8"]
    diffusion = project.metrics("diffusion")
    errors = [diffusion[f"held_out_error_{name}"] for name in ("conditional", "unconditional", "wrong_class")]
    assert errors == sorted(errors)
    assert_headlines_are_those_of_the_details(project)
    assert 0 <= project.metrics("training")["validation"]["clean"] <= 1
    assert (project.path / "curves/classifier/plots/metrics/cross_entropy.tsv").read_text().count("\n") == 4
    project.commit("first results")


def assert_headlines_are_those_of_the_details(project: ProjectCopy) -> None:
    checks = project.metrics("details/masking")["verdict"]
    assert len(checks) == 3  # an odd number: as many that hold as that do not would be the same headline
    assert project.metrics("masking") == {"signs_of_masking": list(checks.values()).count(False)}
    scores = project.metrics("details/pag_score")
    assert set(scores["model"]) == set(scores["baseline"]) == {"class means", "sbg"}
    assert project.metrics("pag_score") == {
        "PAG": scores["model"]["sbg"],
        "PAG of baseline": scores["baseline"]["sbg"],
        "judged": scores["judged"]["model"],
        "judged of baseline": scores["judged"]["baseline"],
    }
    # each is another number, and training on these gradients makes that of the model the larger
    assert scores["model"]["sbg"] > scores["baseline"]["sbg"] != scores["baseline"]["class means"]
    assert scores["judged"]["model"] > scores["judged"]["baseline"]


def test_stages_by_hand_give_the_same_bytes(project: ProjectCopy, tmp_path: Path) -> None:
    """A second run from scratch, in another folder and without DVC."""
    by_hand = ProjectCopy(tmp_path, QUICK)
    for name in ("prepare", "diffusion", "sbg"):
        by_hand.stage(name)
    for name in ("train", "validation", "autoattack", "foolbox"):
        by_hand.stage(name, "--baseline")
        by_hand.stage(name)
    by_hand.stage("masking")
    by_hand.stage("pag_score")
    detailed = {"training", "autoattack", "foolbox", "masking", "pag_score"}
    found = by_hand.metrics_bytes()
    assert set(found) == {f"{n}.json" for n in detailed | {"diffusion"}} | {f"details/{n}.json" for n in detailed}
    assert found == project.metrics_bytes()


def test_second_run_does_nothing(project: ProjectCopy) -> None:
    done = project.run("dvc", "repro")
    assert stages_run(done.stdout) == []
    assert "Data and pipelines are up to date." in done.stdout


def test_lambda_rebuilds_training_and_what_follows(project: ProjectCopy) -> None:
    before = project.metrics_bytes()
    done = project.run("dvc", "exp", "run", "-S", "lambda=0.1")
    assert set(stages_run(done.stdout)) == AFTER_TRAINING | {"check"}
    # of stores that nobody asked for
    assert "No file hash info" not in done.stdout + done.stderr
    changed = {name for name, content in project.metrics_bytes().items() if content != before[name]}
    assert {"training.json", "details/training.json"} <= changed and "diffusion.json" not in changed
    difference = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert difference == {"params.yaml": {"lambda": {"old": "auto", "new": 0.1}}}
    metrics = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    assert metrics.keys() <= {f"metrics/{name}.json" for name in HEADLINES}
    assert sum(len(values) for values in metrics.values()) <= 12


def test_what_does_not_fit_the_data_stops_all_that_runs_long(project: ProjectCopy) -> None:
    """All at once, before the training that `lambda` asks for; and what is mistyped is named, not what DVC misses for it."""
    kept = (project.path / "params.yaml").read_text(encoding="utf-8")
    project.set({"lambda": 0.2, "masking.images": 99999, "validation.images": 88888})
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0 and stages_run(done.stdout) == ["code", "check"]
    assert "masking.images is 99999" in done.stderr and "validation.images is 88888" in done.stderr
    for old, new, words in (("source: sbg", "source: sgb", "did you mean 'sbg'"), ("lambda:", "lamda:", "'lambda'")):
        (project.path / "params.yaml").write_text(kept.replace(f"\n{old}", f"\n{new}"), encoding="utf-8")
        mistyped = project.run("dvc", "repro", check=False)
        assert mistyped.returncode != 0 and words in mistyped.stderr
    (project.path / "params.yaml").write_text(kept, encoding="utf-8")


def test_going_back_takes_everything_from_the_cache(project: ProjectCopy) -> None:
    after = project.metrics_bytes()
    project.set({"lambda": "auto"})
    done = project.run("dvc", "repro")
    assert stages_run(done.stdout) == []
    assert project.git("status", "--porcelain", "metrics") == ""
    assert project.metrics_bytes() != after


def test_class_means_need_no_diffusion(project: ProjectCopy) -> None:
    done = project.run("dvc", "exp", "run", "-S", "source=cm")
    assert set(stages_run(done.stdout)) == AFTER_TRAINING | {"check", "heuristic@cm"}
    assert set(project.metrics("details/pag_score")["model"]) == {"class means", "cm"}
    card = json.loads((project.path / "data/classifier/card.json").read_text(encoding="utf-8"))
    assert card["provenance"]["params"]["lambda"] == 1.5
    assert card["provenance"]["params"]["objective"]["output"] == "logit"


@pytest.mark.parametrize("source", ["nn", "oi", "none"])
def test_other_sources_need_no_diffusion(project: ProjectCopy, source: str) -> None:
    project.set({"source": source})
    made = set(stages_run(project.run("dvc", "repro", "stages/gradients/dvc.yaml:train").stdout))
    # the store of vanilla training exists already: pag_score.reference is none
    assert made == {"check", f"heuristic@{source}", "train"} - {"heuristic@none"}
    listed = project.run("dvc", "repro", "--dry").stdout
    assert set(stages_run(listed)) == AFTER_TRAINING - {"train"}, listed


def test_reference_scores_a_heuristic_against_sbg(project: ProjectCopy) -> None:
    project.set({"source": "cm", "pag_score.reference": "sbg"})
    done = project.run("dvc", "repro", "pag_score")
    assert set(stages_run(done.stdout)) == {"check", "pag_score"}
    assert {"class means", "cm", "sbg"} == set(project.metrics("details/pag_score")["model"])


def test_queued_sweep_and_table(project: ProjectCopy) -> None:
    project.git("checkout", "--quiet", "--force", "HEAD")
    project.run("dvc", "repro")  # also figures and details, so that what lies here is what was committed
    project.run("dvc", "exp", "run", "--queue", "-S", "lambda=0.5,3.0", "validation")
    project.run("dvc", "queue", "start", "--jobs", "1")
    deadline = time.monotonic() + 300
    while (status := project.run("dvc", "queue", "status").stdout).count("Success") < 2:
        assert "Failed" not in status, status
        assert time.monotonic() < deadline, status
        time.sleep(2)
    table = project.run("dvc", "exp", "show", "--csv", "--only-changed").stdout.splitlines()
    header = table[0].split(",")
    values = {row.split(",")[header.index("lambda")] for row in table[1:]}
    assert {"0.5", "auto", "3.0"} <= values


def test_the_page_of_all_experiments(project: ProjectCopy) -> None:
    """Of the runs above: what was committed, two whole experiments, and two of a sweep that ended with validation."""
    done = project.run(sys.executable, "experiments/page.py")
    html = (project.path / "experiments.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="content" type="application/json">(.*?)</script>', html)[1])  # type: ignore[index]
    keys = [column["key"] for column in content["columns"]]
    rows = [dict(zip(keys, found["cells"], strict=True)) | found for found in content["experiments"]]
    assert sorted((row["source"], row["lambda"], len(row["figures"])) for row in rows) == [
        ("cm", 1.5, 4), ("sbg", 0.1, 4), ("sbg", 0.5, 0), ("sbg", 2.0, 4), ("sbg", 3.0, 0)
    ]  # fmt: skip
    listed = project.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    references = {name.rsplit("/", 1)[1]: name for name in listed}
    for row in rows:
        revision = references.get(row["name"], "HEAD")
        attacked = json.loads(project.git("show", f"{revision}:metrics/autoattack.json"))["model"]
        whole = bool(row["figures"])
        # the sweep did not attack: what its commits hold is of the model before
        assert row["autoattack.model.L2 3"] == (attacked["L2 3"] if whole else None)
        assert row["training.validation.clean"] is not None
        assert whole or f"{row['name']} ({row['from']}): left out" in done.stderr
    # figures that experiments share are there once
    numbers = [number for row in rows for number in row["figures"].values()]
    assert len(content["pictures"]) == len(set(numbers)) < len(numbers) == 12


def test_a_diffusion_model_from_elsewhere_takes_the_place_of_ours(project: ProjectCopy, tmp_path: Path) -> None:
    project.git("checkout", "--quiet", "--force", "HEAD")
    project.run("dvc", "repro", SBG)
    shutil.copytree(project.path / "data/diffusion", tmp_path / "elsewhere")
    project.run("dvc", "import-url", str(tmp_path / "elsewhere"), "data/pretrained")
    project.set({"diffusion.steps": 7})  # ours would have to be trained anew
    listed = project.run("dvc", "exp", "run", "-S", "diffusion_checkpoint=data/pretrained", SBG)
    assert stages_run(listed.stdout) == ["check", "sbg"]
    assert "data/pretrained.dvc" in project.git("status", "--porcelain", "--untracked-files=all", "data")

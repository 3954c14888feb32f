"""Experiments: real stages on a handful of images, from archives, broken off and resumed, by hand and through DVC."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from experiments.by_hand import ByHand
from experiments.collection import of_work
from experiments.description import base_params
from pag_core.params.yaml_text import written_yaml
from tests.project_copy import ProjectCopy, stages_run
from tests.samples import ROOT
from tests.small_experiment import DESCRIPTION, archived, as_folders, in_two_threads, killed_in, run


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """train.tar.xz and test.tar.xz of three classes of small pictures."""
    return archived(as_folders(tmp_path_factory.mktemp("archives") / "pictures"))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory, archives):
    """The folder in which the experiment ran by hand, and what it printed: refused, killed, shown, and whole."""
    folder = tmp_path_factory.mktemp("by_hand")
    refused = run(folder, archives, "--by-hand", "--set", "autoattack.images=1000")
    killed = killed_in("baseline_autoattack", folder, archives, "--by-hand")
    shown = run(folder, archives, "--by-hand", "--show")
    whole = run(folder, archives, "--by-hand", "--output", "tables")
    return folder, refused, killed, shown, whole


def ran(output):
    return [line.split(":")[0].removeprefix("=== ") for line in output.splitlines() if line.startswith("=== ")]


@pytest.mark.slow
def test_an_experiment_by_hand_broken_off_and_changed(archives, by_hand):
    folder, refused, killed, shown, whole = by_hand

    def again_by_hand(*arguments):
        return run(folder, archives, "--by-hand", *arguments)

    # nothing has run but what shows it; masking and others, for which there are too few images too, are not wanted
    assert refused.returncode == 1 and "autoattack.images is 1000" in refused.stderr and "masking" not in refused.stderr
    assert ran(refused.stdout) == ["prepare", "check"]
    assert ran(killed) == ["check", "heuristic@cm", "train", "validation", "baseline", "baseline_autoattack"]

    # what was not run is a gap
    assert "| class means | not run | 81.93 |  | not run | 42.03 |  |" in shown.stdout and ran(shown.stdout) == []

    assert whole.returncode == 0, whole.stderr[-2000:]
    assert ran(whole.stdout) == ["baseline_autoattack", "autoattack", "heuristic@none", "pag_score"]
    results = folder / "work/results/tiny-tiny-cm"
    attacked = json.loads((results / "metrics/autoattack.json").read_text())
    assert attacked["images"] == 2 and set(attacked["model"]) == {"clean", "L2 3.0"}
    clean, robust = (100 * attacked["model"][name] for name in ("clean", "L2 3.0"))
    row = f"| class means | {clean:.1f} | 81.93 | {clean - 81.93:+.1f} | {robust:.1f} | 42.03 | {robust - 42.03:+.1f} |"
    assert row in whole.stdout and "| vanilla |" in whole.stdout and "2 test images; one seed." in whole.stdout
    written = (folder / "tables/tiny-tiny.csv").read_text(encoding="utf-8").splitlines()
    # vanilla first, as the description has its rows
    assert [line.split(",")[1] for line in written[1:]] == [*["vanilla"] * 2, *["class means"] * 2]
    assert written[3].startswith(f"tiny-tiny,class means,clean,{clean:.2f},")
    assert row in (folder / "tables/tiny-tiny.md").read_text(encoding="utf-8")
    assert (results / "metrics/details/training.json").exists() and len(
        json.loads((results / "seconds.json").read_text())
    ) == 10

    (results / "metrics/of_an_earlier_run.json").touch()

    # both models of one seed, from the runs by hand
    command = ["experiments/figure.py", "correlation", "tiny.yaml", "--by-hand", "--work", "work", "--size", "tiny"]
    drawn = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:], "--images", str(archives), "--output", "drawn"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr[-2000:]
    assert (folder / "drawn/correlation.png").read_bytes().startswith(b"\x89PNG")
    assert "; 2 models; seed 3407." in (folder / "drawn/correlation.txt").read_text(encoding="utf-8")

    # a stage whose output is gone runs again; equal inputs are not asked for again
    (train,) = (path.parent for path in (folder / "work").glob("train-*/ended.json"))
    shutil.rmtree(train / "data/classifier")
    again = again_by_hand()
    assert again_by_hand("--show").stdout.strip() == again.stdout[again.stdout.index("tiny\n") :].strip()
    assert ran(again.stdout) == ["train"] and again.stdout.count("done before") == 9

    # lambda changes one classifier; everything before it stays
    changed = again_by_hand("--set", "cm:lambda=0.5")
    assert (
        ran(changed.stdout) == ["check", "train", "validation", "autoattack", "pag_score"]
        and changed.stdout.count("done before") == 5
    )
    (listed,) = of_work(folder / "work")
    assert listed.params["lambda"] == 0.5 and listed.metrics.keys() == {"autoattack", "pag_score", "training"}


@pytest.mark.slow
def test_the_same_experiment_through_dvc(tmp_path, archives, by_hand):
    project = ProjectCopy(tmp_path / "project", {})
    (project.path / "tiny.yaml").write_text(written_yaml(DESCRIPTION), encoding="utf-8")
    command = [
        sys.executable,
        "experiments/run.py",
        "tiny.yaml",
        "--images",
        str(archives),
        "--work",
        str(tmp_path / "work"),
    ]
    whole = project.run(*command, "--size", "tiny")
    assert "tiny-tiny-cm" in project.run("dvc", "exp", "show", "--csv").stdout
    # the numbers do not depend on who runs the stages
    assert table_of(whole.stdout) == table_of(by_hand[-1].stdout) != []

    # the networks come out of DVC's cache
    pictured = project.run(
        command[0], "experiments/figure.py", "targeted", *command[2:], "--size", "tiny", "--output", "drawn"
    )
    assert "class means" in pictured.stdout and "not run" not in pictured.stderr
    assert (project.path / "drawn/targeted.png").exists()

    # what a broken-off command left in the queue has other parameters, and does not take the name
    project.run("dvc", "exp", "remove", "tiny-tiny-cm")
    project.run("dvc", "exp", "run", "--queue", "--name", "tiny-tiny-cm", "-S", "lambda=7")
    again = project.run(*command, "--size", "tiny")
    assert table_of(again.stdout) == table_of(whole.stdout)
    # a store that is made in seconds stays out of DVC's cache; the rest comes out of it.
    # DVC takes independent stages in any order
    assert sorted(stages_run(last_log(project))) == ["heuristic@cm", "heuristic@none"]

    # what has finished with the parameters and the code of now is not queued again
    finished = project.run(*command, "--size", "tiny")
    assert table_of(finished.stdout) == table_of(whole.stdout)
    assert "tiny-tiny-cm: done before" in finished.stdout and "ueued" not in finished.stdout + finished.stderr

    # only what ran with the same parameters is shown, also from later commits
    project.run("git", "commit", "--allow-empty", "--quiet", "--message", "later")
    assert table_of(project.run(*command, "--size", "tiny", "--show").stdout) == table_of(whole.stdout)
    other = project.run(*command, "--size", "tiny", "--set", "cm:lambda=0.5", "--show")
    assert "| class means | not run |" in other.stdout and "tiny-tiny-cm ran with other parameters" in other.stderr

    failed = project.run(*command, "--size", "tiny", "--set", "autoattack.images=1000", check=False)
    assert (
        failed.returncode == 1
        and "autoattack.images is 1000" in failed.stderr
        and "tiny-tiny-cm failed" in failed.stderr
    )


def last_log(project):
    tasks = project.run("dvc", "queue", "status").stdout.splitlines()
    newest = [line.split()[0] for line in tasks if "tiny-tiny-cm" in line][-1]
    return project.run("dvc", "queue", "logs", newest).stdout


def table_of(output):
    return [line for line in output.splitlines() if line.startswith("| ")]


def test_two_commands_make_a_stage_once(tmp_path, capsys):
    ran = []

    class Slow(ByHand):
        def is_done(self, name):
            return (self.folder(name) / "done").exists()

        def _run(self, name):
            time.sleep(0.5)
            self.folder(name).mkdir()
            (self.folder(name) / "done").touch()
            ran.append(name)

    in_two_threads(lambda: Slow(base_params(), tmp_path).make("prepare"))
    assert ran == ["prepare"]
    said = capsys.readouterr().out
    assert "Another process is running the stage prepare; waiting for it." in said and "prepare: done before" in said

"""Experiments through DVC: real stages on a handful of images, from archives; broken off, resumed, failed and changed."""

import re
import signal
import subprocess

import psutil
import pytest
from PIL import Image

from tests.fixtures.project_copy import ProjectCopy, forks, stages_run
from tests.fixtures.small_experiment import archived, as_folders, command, stopped_in, suspended

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train.tar.xz and test.tar.xz of three classes of small pictures."""
    return archived(as_folders(tmp_path_factory.mktemp("archives") / "pictures"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return ProjectCopy(tmp_path_factory.mktemp("experiments") / "project", {"checkpoint_seconds": 0})


def table_of(output):
    return [line for line in output.splitlines() if line.startswith("| ")]


def names_in(output):
    return re.findall(r"^(tiny-tiny-\w+-[0-9a-f]{8}): done", output, re.MULTILINE)


def stages_of(project, name):
    return stages_run(project.run("dvc", "queue", "logs", name).stdout)


def test_an_experiment_whole_shown_and_broken_off(project, images):
    # what was not run is a gap
    shown = project.run(*command(project, images, "--show"))
    assert "| class means | not run | 81.93 | not run |" in shown.stdout
    assert "Percent; nothing has run yet; one seed." in shown.stdout

    # Ctrl-C ends the run too, and nothing is left of it
    said, code = stopped_in("stages/train.py", signal.SIGINT, project, command(project, images))
    assert (
        code == 130 and said.count("the same command resumes") == 2 and "Ending: what runs saves a checkpoint" in said
    )
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(project.path) in str(one.info["cmdline"])]
    assert not project.run("dvc", "exp", "list", "--name-only").stdout.split()

    # a command that is killed leaves its run to the next one
    said, code = stopped_in("stages/autoattack.py", signal.SIGKILL, project, command(project, images))
    assert code == -signal.SIGKILL
    with suspended(project):  # else it may have ended before the next one looks
        given = command(project, images, "--jobs", "2", "--output", "tables")
        environment = project.environment(forked=True)
        following = subprocess.Popen(
            [f"{forks()}/python", *given[1:]], cwd=project.path, env=environment, stdout=subprocess.PIPE, text=True
        )
        begun = following.stdout.readline()
    assert re.fullmatch(r"tiny-tiny-\w+-\w{8}: is in the queue \(.*\)\n", begun), begun
    said = following.communicate(timeout=600)[0]
    assert following.returncode == 0, said
    cm, oi = sorted(names_in(said))
    assert sorted(project.run("dvc", "exp", "list", "--name-only").stdout.split()) == [cm, oi]
    # what they share was made once
    assert set(stages_of(project, oi)) & {"prepare", "baseline", "baseline_autoattack"} == set()

    rows = table_of(said)
    found = [re.split(r" *\| *", row.strip("| ")) for row in rows[1:]]
    assert [row[0] for row in found] == ["vanilla", "class means", "one image"]
    # published numbers of another dataset, and no difference from them
    assert [row[2] for row in found[:2]] == ["92.32", "81.93"] and "difference" not in said
    assert "2 test images; one seed." in said
    assert (project.path / "tables/tiny-tiny.md").read_text(encoding="utf-8").splitlines()[2:6] == [
        line for line in said.splitlines() if line.startswith("|")
    ][:4]
    assert (project.path / "tables/tiny-tiny.csv").read_text(encoding="utf-8").count("tiny-tiny,class means,") == 2

    # done: nothing is queued again, also from a later commit and with other settings of where it runs
    project.run("git", "commit", "--allow-empty", "--quiet", "--message", "later")
    again = project.run(*command(project, images, "--set", "processes=2"))
    assert table_of(again.stdout) == rows and again.stdout.count("done before") == 2 and "queue" not in again.stdout

    # the networks come out of DVC's cache
    drawn = project.run(*_figure(command(project, images), "targeted", "--output", "drawn"))
    assert "class means" in drawn.stdout and "not run" not in drawn.stderr
    assert (project.path / "drawn/targeted.png").exists()
    project.run(*_figure(command(project, images), "correlation", "--output", "drawn"))
    # two models of one seed, and their one baseline
    assert "; 3 models; seed 3407." in (project.path / "drawn/correlation.txt").read_text(encoding="utf-8")


def _figure(given, name, *arguments):
    return [given[0], "experiments/figure.py", name, *given[2:], *arguments]


def test_a_run_that_fails_ends_no_other(project, images):
    changes = ("cm:autoattack.images=1000", "cm:masking.images=1000", "oi:lambda=0.3")
    given = command(project, images, *(text for change in changes for text in ("--set", change)))
    failed = project.run(*given, check=False)
    assert failed.returncode == 1 and re.search(r"tiny-tiny-oi-\w{8}: done after", failed.stdout)
    assert re.search(r"(?s)tiny-tiny-cm-\w{8} failed; its last lines:.*autoattack.images is 1000", failed.stderr)
    # masking, for which there are too few images too, is not wanted
    assert "masking.images is" not in failed.stderr
    shown = project.run(*given, "--show")
    assert "| class means | not run |" in shown.stdout and "| one image | not run |" not in shown.stdout
    assert re.search(r"tiny-tiny-cm: other code, parameters or images made tiny-tiny-cm-\w{8}", shown.stderr)


def test_what_changes_runs_again_and_the_rest_does_not(project, tmp_path):
    """Code of a stage, and an image of the user's."""
    folders = as_folders(tmp_path / "pictures")
    given = command(project, folders, "--only", "cm")
    (first,) = names_in(project.run(*given).stdout)
    source = project.path / "pag_core/evaluation/pag_score.py"
    source.write_text(source.read_text(encoding="utf-8").replace("def ", "EDITED = 1\n\n\ndef ", 1), encoding="utf-8")
    (edited,) = names_in(project.run(*given).stdout)
    # a store that is made in seconds stays out of DVC's cache
    rerun = set(stages_of(project, edited)) - {"code", "heuristic@cm", "heuristic@none"}
    assert edited != first and rerun - {"check"} == {"pag_score"}
    picture = next((folders / "train/cat").iterdir())
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(picture)
    (other,) = names_in(project.run(*given).stdout)
    assert other not in (first, edited) and {"prepare", "train", "autoattack"} <= set(stages_of(project, other))

"""What `dvc repro` makes is an experiment that the next run does not take away: real DVC, a pipeline of one quick stage."""

import re
import subprocess
import sys

import pytest

from experiments.runs import kept, repository
from pag_core.errors import ExperimentFailed
from tests.fixtures.project_copy import CONFIG

pytestmark = pytest.mark.slow

FORMAT = "%(refname:lstrip=2) %(objectname)"
PIPELINE = """
stages:
  validation:
    cmd: mkdir -p metrics && grep lambda params.yaml | sed 's/lambda/{"accuracy"/; s/$/}/' > metrics/training.json
    params: [lambda]
    metrics:
      - metrics/training.json: {cache: false}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a command in a checkout with that pipeline, committed, and returns its output."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    for module in (kept, repository):
        monkeypatch.setattr(module, "CHECKOUT", tmp_path)

    def command(*words):
        words = (sys.executable, "-m", *words) if words[0] == "dvc" else words
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    command("git", "init", "--quiet")
    command("dvc", "init", "--quiet")
    (tmp_path / ".dvc/config").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "params.yaml").write_text("lambda: 1\n", encoding="utf-8")
    command("git", "config", "user.name", "test")
    command("git", "config", "user.email", "test@example.invalid")
    command("git", "add", "--all")
    command("git", "commit", "--quiet", "--message", "start")
    return command


def experiments(run):
    """The metrics of each experiment, by name."""
    found = [line.split() for line in run("git", "for-each-ref", f"--format={FORMAT}", "refs/exps").splitlines()]
    revisions = {name.rpartition("/")[2]: revision for name, revision in found if name.count("/") == 2}
    return {name: run("git", "show", f"{revision}:metrics/training.json") for name, revision in revisions.items()}


def test_the_results_of_repro_stay_when_the_next_run_takes_their_place(run, tmp_path, capsys):
    run("dvc", "repro")
    kept.main()
    assert capsys.readouterr().out == "Ran experiment(s): default\n"
    assert experiments(run) == {"default": '{"accuracy": 1}\n'}
    # a first difference
    run("dvc", "exp", "run", "--name", "other", "-S", "lambda=2")
    assert experiments(run) == {"default": '{"accuracy": 1}\n', "other": '{"accuracy": 2}\n'}
    assert re.search(r"accuracy +1 +2 +1", run("dvc", "metrics", "diff", "default"))
    # what an experiment has already is no other
    run("git", "checkout", "params.yaml")
    run("dvc", "repro")
    assert kept.keep() is None
    run("git", "commit", "--allow-empty", "--quiet", "--message", "later")
    assert kept.keep() is None and len(experiments(run)) == 2
    # parameters that are not the committed ones are not the default
    (tmp_path / "params.yaml").write_text("lambda: 3\n", encoding="utf-8")
    run("dvc", "repro")
    assert kept.keep() is not None
    (name,) = experiments(run).keys() - {"default", "other"}
    assert experiments(run)[name] == '{"accuracy": 3}\n' and kept.keep() is None
    # nor are those of the last commit another
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "kept in git")
    run("dvc", "exp", "remove", name)
    assert kept.keep() is None


def test_without_a_committer_it_is_said_and_what_dvc_refuses_too(run, capsys, monkeypatch):
    run("dvc", "repro")
    run("git", "config", "--unset", "user.name")
    kept.main()
    assert (
        "The results are no experiment, and the next run takes their place: git does not know who"
        in capsys.readouterr().err
    )
    run("git", "config", "user.name", "test")
    monkeypatch.setattr(kept, "DEFAULT", "not a name")
    with pytest.raises(ExperimentFailed, match=r"the results are in the checkout, but are no experiment: .*not a name"):
        kept.keep()
    with pytest.raises(SystemExit, match="1"):
        kept.main()

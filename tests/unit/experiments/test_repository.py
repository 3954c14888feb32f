"""What DVC needs of git, said in one sentence where it is missing."""

import os
import re
import subprocess

import pytest

from experiments.overview import collection
from experiments.runs import named, repository
from pag_core.errors import RepositoryMissing


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder as the checkout, where git has no settings of the user's."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    place = tmp_path / "my papers/pag"
    (place / ".dvc").mkdir(parents=True)
    for module in (repository, collection, named):
        monkeypatch.setattr(module, "CHECKOUT", place)
    return place


def git(place, *arguments):
    subprocess.run(["git", *arguments], cwd=place, check=True, capture_output=True)


def refusal(required):
    with pytest.raises(RepositoryMissing) as caught:
        required()
    return str(caught.value)


def test_a_folder_out_of_a_zip(checkout, capsys):
    for required in (repository.require_repository, repository.require_commits, repository.require_committer):
        said = refusal(required)
        assert str(checkout) in said and "(git init && git add --all && git commit -m start)" in said
        assert "dvc config --local core.no_scm true" in said and "\n" not in said
    assert not repository.has_commits()
    with pytest.raises(SystemExit):
        repository.main()
    assert "is in no git repository" in capsys.readouterr().err


def test_a_folder_where_dvc_does_without_git(checkout):
    (checkout / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    repository.require_repository()
    assert "--unset core.no_scm" in refusal(repository.require_commits)


def test_a_repository_without_a_commit_and_without_an_identity(checkout):
    git(checkout, "init", "--quiet")
    repository.require_repository()
    assert "has no commit in git" in refusal(repository.require_commits)
    identity = ["-c", "user.name=a", "-c", "user.email=b@example.invalid"]
    git(checkout, *identity, "commit", "--quiet", "--allow-empty", "--message", "start")
    repository.require_commits()
    assert "git config user.name NAME && git config user.email ADDRESS" in refusal(repository.require_committer)
    git(checkout, "config", "user.name", "a")
    assert "git config user.email" in refusal(repository.require_committer)
    git(checkout, "config", "user.email", "b@example.invalid")
    repository.require_committer()


def test_a_folder_of_a_larger_repository(checkout):
    git(checkout.parent, "init", "--quiet")
    repository.require_repository()
    assert not repository.has_commits()


def test_git_that_is_not_installed(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert re.search("git is not installed.*install it", refusal(repository.require_repository))


@pytest.mark.parametrize("above", [".", ".."])
def test_what_has_no_remote_to_send_its_data_to(checkout, above):
    git(checkout / above, "init", "--quiet")
    config = checkout / ".dvc/config"
    revisions = []
    remote = "[core]\n    remote = shared\n['remote \"shared\"']\n    url = s3://bucket/dvc\n"
    for number, content in enumerate(("", remote)):
        config.write_text(content, encoding="utf-8")
        git(checkout, "add", "--all")
        git(checkout, "-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-m", str(number))
        revisions.append(repository.git("rev-parse", "HEAD").stdout.strip())
    assert repository.without_remote(revisions) == []
    git(checkout, "remote", "add", "origin", "elsewhere")
    assert repository.without_remote(revisions) == revisions[:1] and repository.without_remote([]) == []
    config.write_text("", encoding="utf-8")
    assert repository.without_remote(revisions) == repository.without_remote([]) == [""]
    # a remote of this machine's own is that of every revision
    (checkout / ".dvc/config.local").write_text(remote, encoding="utf-8")
    assert repository.without_remote(revisions) == []

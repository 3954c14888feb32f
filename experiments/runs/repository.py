"""What DVC needs of git: a repository, a commit, and who commits; and the files of any revision, as they lie in this checkout.

python -m experiments.runs.repository
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import typer
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from pag_core.errors import PagError, RepositoryMissing
from pag_core.pipeline.code_identity import CHECKOUT

COMMIT = "git add --all && git commit -m start"


def require_repository() -> None:
    """Raise RepositoryMissing unless this checkout is in a git repository, or DVC is told to do without."""
    done = git("rev-parse", "--git-dir")
    if done.returncode and not _does_without_git():
        raise RepositoryMissing(
            f"{CHECKOUT} is in no git repository, which DVC asks for ({done.stderr.splitlines()[0]}); make it one (git init && "
            f"{COMMIT}), or let DVC do without (dvc config --local core.no_scm true), but then without its experiments"
        )


def require_commits() -> None:
    """Raise RepositoryMissing unless DVC can have experiments here: in a git repository with a commit."""
    require_repository()
    if _does_without_git():
        raise RepositoryMissing(
            "DVC is told to do without git, where it has no experiments: dvc config --local --unset core.no_scm"
        )
    if not has_commits():
        raise RepositoryMissing(f"{CHECKOUT} has no commit in git, and a DVC experiment begins with one: {COMMIT}")


def require_committer() -> None:
    """Raise RepositoryMissing unless DVC can make experiments here: git knows who commits."""
    require_commits()
    if any(not git("config", key).stdout.strip() for key in ("user.name", "user.email")):
        raise RepositoryMissing(
            "git does not know who commits, and DVC keeps an experiment as a commit: git config user.name NAME && "
            "git config user.email ADDRESS"
        )


def has_commits() -> bool:
    """Whether this checkout is in a git repository with a commit."""
    return git("rev-parse", "--verify", "--quiet", "HEAD").returncode == 0


def without_remote(revisions: list[str]) -> list[str]:
    """Those of `revisions` whose configuration has no DVC remote, or "" alone if this checkout has none; [] if git has none.

    DVC pushes an experiment's data to the remote of the configuration that it was made with, and says nothing if that has none.
    """
    from dvc.repo import Repo

    if not git("remote").stdout:
        return []
    with Repo(str(CHECKOUT)) as repo:
        if not repo.config["core"].get("remote"):
            return [""]
        each = repo.brancher(revs=revisions, workspace=False, sha_only=True)
        return [revision for revision in each if not repo.config["core"].get("remote")]


@contextlib.contextmanager
def stored(revision: str) -> Iterator[AbstractFileSystem]:
    """The files of a revision by their paths in this checkout, which may lie in a folder of a larger git repository."""
    from dvc.api import DVCFileSystem

    # DVC gives a revision's files by their paths in all of git's repository
    below = git("rev-parse", "--show-prefix").stdout.strip().rstrip("/")
    with contextlib.closing(DVCFileSystem(str(CHECKOUT), rev=revision, subrepos=bool(below))) as files:
        yield DirFileSystem(below, files) if below else files


def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command of git in this checkout, whether it fails or not; raises RepositoryMissing where git is not installed."""
    try:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RepositoryMissing(
            "git is not installed, and DVC needs it; install it (on Debian: apt install git)"
        ) from None


def _does_without_git() -> bool:
    from dvc.config import Config

    return bool(Config(str(CHECKOUT / ".dvc"))["core"].get("no_scm"))


def main() -> None:
    """Say in one sentence what is missing."""
    try:
        require_repository()
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)

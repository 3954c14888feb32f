"""What `dvc repro` has made, kept as a DVC experiment: else it lies in the checkout alone, until the next run takes its place.

python -m experiments.runs.kept
"""

import subprocess
import sys

import typer
from dvc.repo import Repo

from experiments.description.experiment import PARAMS
from experiments.runs.repository import git, require_committer
from pag_core.errors import ExperimentFailed, PagError, RepositoryMissing
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.paths import METRICS
from pag_core.pipeline.uncommitted import uncommitted

# of the parameters as they are committed; others get a name of DVC's
DEFAULT = "default"


def keep() -> str | None:
    """Make an experiment of the results in the checkout; None where an experiment or the last commit has the same.

    Returns what DVC says. Raises RepositoryMissing where DVC can have no experiments, and ExperimentFailed with what DVC says
    where it makes none.
    """
    require_committer()
    with Repo(str(CHECKOUT)) as repo:
        of_commit = repo.experiments.ls(all_commits=True)
        last = repo.scm.get_rev()
    here = _in_checkout()
    if any(_in_revision(rev) == here for rev in [last, *(rev for found in of_commit.values() for _, rev in found)]):
        return None
    taken = {name for name, _ in of_commit.get(last, [])}
    name = [] if uncommitted(CHECKOUT / PARAMS) or DEFAULT in taken else ["--name", DEFAULT]
    # all stages are as they should be: none runs
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "run", *name], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ExperimentFailed(f"the results are in the checkout, but are no experiment: {done.stderr.strip()}")
    return next(line for line in done.stdout.splitlines() if line.startswith("Ran experiment"))


def _in_checkout() -> dict[str, str]:
    """The content of parameters and metrics as git knows it, by path."""
    paths = [PARAMS, *sorted(path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / METRICS).glob("*.json"))]
    return dict(zip(paths, git("hash-object", *paths).stdout.split(), strict=True))


def _in_revision(revision: str) -> dict[str, str]:
    lines = git("ls-tree", revision, PARAMS, f"{METRICS}/").stdout.splitlines()
    found = {path: about.split()[2] for about, _, path in (line.partition("\t") for line in lines)}
    return {path: content for path, content in found.items() if path == PARAMS or path.endswith(".json")}


def main() -> None:
    """Keep the results, and say under which name."""
    try:
        if said := keep():
            print(said)
    except RepositoryMissing as error:
        print(f"The results are no experiment, and the next run takes their place: {error}", file=sys.stderr)
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)

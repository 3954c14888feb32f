"""An experiment through DVC: a queued experiment for each classifier, run one after the other."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from fsspec import AbstractFileSystem

from experiments.described_stages import Plain, described_stages, metrics_of, needed_for
from experiments.description import Experiment, base_params
from experiments.lock_files import LOCKS, is_of_now, locked_stages, outdated
from experiments.programs import run_program
from experiments.repository import require_commits, require_committer, stored
from experiments.results import Measured
from pag_core.errors import ArtifactError
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.places import WANTED


def overrides(params: Plain, base: Plain, before: str = "") -> list[str]:
    """`KEY=VALUE` for each value of `params` that is not that of `base`, `~KEY` for one that `params` lacks.

    As `dvc exp run --set-param` takes them: it lays a section's values over those that are there.
    """
    found = [f"~{before}{key}" for key in base if key not in params]
    for key, value in params.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and value:
            found += overrides(value, base[key], f"{before}{key}.")
        elif key not in base or value != base[key]:
            found.append(f"{'' if key in base else '+'}{before}{key}={_spelled(value)}")
    return found


def _spelled(value: Any) -> str:
    """A value in the grammar of overrides (Hydra's), in which words outside quotes may not hold every character."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            quoted = value.replace("'", "\\'")
            return f"'{quoted}'"
        case dict():
            return "{" + ",".join(f"{key}:{_spelled(part)}" for key, part in value.items()) + "}"
        case list():
            return "[" + ",".join(_spelled(part) for part in value) + "]"
        case _:
            return str(value)


def run_with_dvc(experiment: Experiment) -> Measured:
    """Queue a DVC experiment for each run that has not finished, run them, and return what each run measured.

    What was made before comes out of DVC's cache; a stage that was killed resumes from its checkpoint. Ends the
    program with exit code 1 if an experiment fails, and prints its last lines.
    """
    require_committer()
    finished = finished_revisions(experiment, all_commits=False, remark=False)
    revisions = {run: found for run, found in finished.items() if _need_not_run_again(found, experiment, run)}
    for run in revisions:
        print(f"{experiment.names[run]}: done before", flush=True)
    names = {run: name for run, name in experiment.names.items() if run not in revisions}
    _forget({*names.values()})
    for run, name in names.items():
        settings = [f"--set-param={text}" for text in overrides(experiment.params[run], base_params())]
        _run("dvc", "exp", "run", "--queue", "--name", name, *settings, *experiment.stages)
    if names:
        # its exit code does not report a failure
        _run("dvc", "exp", "run", "--run-all", "--jobs", "1", **{WANTED: " ".join(_needed(experiment))})
        revisions = finished_revisions(experiment, all_commits=False)
    for run, name in names.items():
        if run not in revisions:
            print(
                f"\nThe experiment {name} failed; its last lines (dvc queue logs {name}):", file=sys.stderr, flush=True
            )
            log = _printed(sys.executable, "-m", "dvc", "queue", "logs", name)
            print("\n".join(log.splitlines()[-10:]), file=sys.stderr)
            sys.exit(1)
    return found_with_dvc(experiment, revisions)


def _forget(names: set[str]) -> None:
    """Free the names for another run: results stay in DVC's cache, where `--force` would make everything again.

    What an interrupted command left in the queue goes too: it has the parameters of then.
    """
    with Repo(str(CHECKOUT)) as repo:
        experiments = repo.experiments
        while earlier := names & {
            *(entry.name for entry in experiments.celery_queue.iter_queued()),
            *(name for found in experiments.ls().values() for name, _ in found),
        }:
            experiments.remove(sorted(earlier))


def finished_revisions(experiment: Experiment, *, all_commits: bool = True, remark: bool = True) -> dict[str, str]:
    """The revision of the DVC experiment of each run that has finished: the latest of its name, on any commit or the last.

    One that ran with other parameters or inputs than the description has now is none of them, and a remark names it. Raises
    RepositoryMissing where there is no git repository with a commit.
    """
    require_commits()
    with Repo(str(CHECKOUT)) as repo:
        every = [(name, rev) for found in repo.experiments.ls(all_commits=all_commits).values() for name, rev in found]
    revisions: dict[str, list[str]] = {}
    for name, revision in sorted(every, key=lambda one: _committed(one[1]), reverse=True):
        revisions.setdefault(name, []).append(revision)
    found: dict[str, str] = {}
    for run, name in experiment.names.items():
        of_name = revisions.get(name, [])
        fitting = (revision for revision in of_name if _ran_like(revision, experiment, run))
        if (revision := next(fitting, None)) is not None:
            found[run] = revision
        elif of_name and remark:
            print(f"{name} ran with other parameters or inputs, and is left out", file=sys.stderr)
    return found


def found_with_dvc(experiment: Experiment, revisions: dict[str, str]) -> Measured:
    """What the runs measured, of which `finished_revisions` gives the revisions.

    Raises ArtifactError for metrics that are not in DVC's cache.
    """
    found: Measured = {}
    for run, revision in revisions.items():
        with stored(revision) as files:
            found[run] = {
                metrics: _read(files, path, experiment.names[run])
                for metrics, path in metrics_paths(experiment, run).items()
            }
    return found


def outputs_with_dvc(experiment: Experiment, revisions: dict[str, str], place: Path) -> Callable[[str, str], Path]:
    """A function that takes an output of a run out of DVC's cache, once, into a folder of the run below `place`."""

    def output(run: str, path: str) -> Path:
        target = place / experiment.name / run / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with stored(revisions[run]) as files:
                files.get(path, str(target), recursive=True)
        return target

    return output


def metrics_paths(experiment: Experiment, run: str) -> dict[str, str]:
    """The metrics files of the stages that are wanted, by name."""
    described = described_stages(experiment.params[run])
    return {name: path for stage in experiment.stages for name, path in metrics_of(described[stage]).items()}


def _ran_like(revision: str, experiment: Experiment, run: str) -> bool:
    """Whether the stages that are wanted ran there, with the parameters that the description has now."""
    old = outdated(_locked(revision, run), experiment.params[run])
    with stored(revision) as files:
        return all(path not in old and files.exists(path) for path in metrics_paths(experiment, run).values())


def _need_not_run_again(revision: str, experiment: Experiment, run: str) -> bool:
    """Whether a finished run has the code of now, and its metrics are in DVC's cache."""
    try:
        found_with_dvc(experiment, {run: revision})
    except ArtifactError:
        return False
    return is_of_now(_locked(revision, run), experiment.params[run], experiment.stages)


def _locked(revision: str, run: str) -> Plain:
    with stored(revision) as files:
        return locked_stages({f"{lock} of {run}": files.cat_file(lock) for lock in LOCKS if files.exists(lock)})


def _read(files: AbstractFileSystem, path: str, name: str) -> Plain:
    try:
        content: Plain = json.loads(files.cat_file(path))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} of {name} is not in DVC's cache; fetch it (dvc fetch), or run the experiment again"
        ) from None
    return content


def _committed(revision: str) -> int:
    return int(_printed("git", "show", "--no-patch", "--format=%ct", revision))


def _needed(experiment: Experiment) -> list[str]:
    """Every stage that one of the runs needs."""
    found = [needed_for(described_stages(params), experiment.stages) for params in experiment.params.values()]
    return sorted({name for names in found for name in names})


def _run(*command: str, **environment: str) -> None:
    code = run_program([sys.executable, "-m", *command], CHECKOUT, **environment)
    if code in (130, 143):
        print(
            "\nWhat DVC's queue has begun goes on; dvc queue status names it, dvc queue kill ends it", file=sys.stderr
        )
    if code:
        sys.exit(code)


def _printed(*command: str) -> str:
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout

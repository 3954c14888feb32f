"""The runs of a description as DVC experiments: their names, which of them have finished, and what they measured."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo

from experiments.description.experiment import Experiment, base_params
from experiments.description.file import refused
from experiments.runs.repository import require_commits, stored
from experiments.runs.stages import WATCHING, Plain, Stages, needed_for
from pag_core.params.values import CheckedStage, is_imported
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.locks import holding
from pag_core.pipeline.paths import CODE, DIFFUSION

DIGITS_OF_A_NAME = 8


@dataclass(frozen=True)
class Run:
    """What one run is: the parameters that DVC is given, the stages that are wanted of it, and their metrics files by name.

    `addresses` are what DVC's commands find these stages by. `name` has a fingerprint of all that its results depend on: an
    experiment of this name that has its metrics is the run. `shared` are the identities of its stages that DVC's cache keeps
    for other runs, apart from those that only watch.
    """

    name: str
    params: Plain
    wanted: tuple[str, ...]
    addresses: tuple[str, ...]
    metrics: dict[str, str]
    shared: frozenset[str]


@dataclass(frozen=True)
class Done:
    """A run that has finished: the revision of its experiment, and what it measured, by the names of its metrics files."""

    revision: str
    measured: dict[str, Plain]


def named(experiment: Experiment) -> dict[str, Run]:
    """The runs of an experiment; raises DatasetError where images or a diffusion model of the user's are not there."""
    stages = Stages()
    # while DVC queues an experiment for another command, the code of the checkout is that of the last commit
    with holding(queue_lock(), "queueing an experiment"):
        return {
            run: _named(f"{experiment.name}-{run}", _in_full(params), experiment.stages, stages)
            for run, params in experiment.params.items()
        }


def is_as_named(run: Run) -> bool:
    """Whether the code, the parameters and what the user gave are still what the name of the run says; within `queue_lock`."""
    return _named(_described(run.name), run.params, run.wanted, Stages()).name == run.name


def queue_lock() -> Path:
    """The lock file that a command holds while DVC queues for it: the files of the checkout are others meanwhile."""
    return CHECKOUT / ".cache/locks/queue"


def _named(described: str, params: Plain, wanted: tuple[str, ...], stages: Stages) -> Run:
    # whom the check serves is no part of a name
    found = stages.of({**params, "check": base_params()["check"]})
    if unknown := [stage for stage in wanted if stage not in found]:
        raise refused(f"{described}: the stage {unknown[0]} is not one of: {', '.join(found)}")
    needed = needed_for(found, wanted)
    identity = digest({name: found[name].identity for name in wanted})
    checked = [name for name in CheckedStage.__args__ if name in needed]  # type: ignore[attr-defined]
    return Run(
        name=f"{described}-{identity[:DIGITS_OF_A_NAME]}",
        params={**params, "check": {"stages": checked}},
        wanted=wanted,
        addresses=tuple(found[name].address for name in wanted),
        metrics={name: path for stage in wanted for name, path in found[stage].metrics.items()},
        shared=frozenset(found[name].identity for name in needed if found[name].cached and name not in WATCHING),
    )


def _in_full(params: Plain) -> Plain:
    """With whole paths of what the user gave: DVC runs an experiment in a folder of its own."""
    given = {"image_folder"} if params["dataset"] == "image_folder" else set()
    given |= {"diffusion_checkpoint"} if Path(params["diffusion_checkpoint"]) != DIFFUSION else set()
    given |= {"classifier_checkpoint"} if is_imported(params["classifier_checkpoint"]) else set()
    full = {**params, **{key: str((CHECKOUT / params[key]).resolve()) for key in given}}
    if CODE not in (read := Path(params["own"]["reads"])).parents:
        full["own"] = {**params["own"], "reads": str((CHECKOUT / read).resolve())}
    return full


def finished(runs: dict[str, Run], *, remark: bool = False) -> dict[str, Done]:
    """The runs that have finished, on any commit, and whose metrics are at hand.

    With `remark` a line names experiments of the same description that ran with other code, parameters or images. Raises
    RepositoryMissing where there is no git repository with a commit.
    """
    require_commits()
    with Repo(str(CHECKOUT)) as repo:
        every = [(name, rev) for found in repo.experiments.ls(all_commits=True).values() for name, rev in found]
    found: dict[str, Done] = {}
    for run, one in runs.items():
        for revision in [revision for name, revision in every if name == one.name]:
            with stored(revision) as files, contextlib.suppress(FileNotFoundError):
                metrics = {name: json.loads(files.cat_file(path)) for name, path in one.metrics.items()}
                found[run] = Done(revision, metrics)
        if (
            remark
            and run not in found
            and (others := [name for name, _ in every if _described(name) == _described(one.name)])
        ):
            print(f"{_described(one.name)}: other code, parameters or images made {', '.join(others)}", file=sys.stderr)
    return found


def _described(name: str) -> str:
    """The name of an experiment without its fingerprint."""
    return name.rpartition("-")[0]


def outputs(runs: dict[str, Run], found: dict[str, Done], place: Path) -> Callable[[str, str], Path]:
    """A function that takes an output of a run out of DVC's cache, once, into a folder of the run below `place`."""

    def output(run: str, path: str) -> Path:
        target = place / runs[run].name / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with stored(found[run].revision) as files:
                files.get(path, str(target), recursive=True)
        return target

    return output

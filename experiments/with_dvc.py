"""An experiment through DVC: a queued experiment for each classifier, run one after the other."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dvc.api

from experiments.description import Experiment, Plain, base_params
from experiments.results import Measured
from pag_core.pipeline.code_identity import CHECKOUT


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
    """Queue a DVC experiment for each classifier, run them, and return what each of them measured.

    What was made before comes out of DVC's cache; a stage that was killed resumes from its checkpoint. Ends the
    program with exit code 1 if an experiment fails, and prints its last lines.
    """
    names = experiment.names
    # removing an experiment frees its name, and its results stay in the cache; --force would make everything again
    if earlier := _revisions().keys() & names.values():
        _run("dvc", "exp", "remove", "--quiet", *sorted(earlier))
    for classifier, name in names.items():
        settings = [f"--set-param={text}" for text in overrides(experiment.params[classifier], base_params())]
        _run("dvc", "exp", "run", "--queue", "--name", name, *settings, *experiment.stages)
    # its exit code does not report a failure
    _run("dvc", "exp", "run", "--run-all", "--jobs", "1")
    revisions = _revisions()
    return {classifier: _metrics(name, revisions.get(name), experiment) for classifier, name in names.items()}


def found_with_dvc(experiment: Experiment) -> Measured:
    """What has been measured by the latest DVC experiments of these names."""
    revisions = _revisions()
    names = experiment.names
    return {run: _metrics(name, revisions[name], experiment) for run, name in names.items() if name in revisions}


def outputs_with_dvc(experiment: Experiment, place: Path) -> Callable[[str, str], Path]:
    """A function that takes an output of a run out of DVC's cache, once, into a folder of the run below `place`."""
    revisions, names = _revisions(), experiment.names

    def output(run: str, path: str) -> Path:
        target = place / experiment.name / run / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            stored = dvc.api.DVCFileSystem(str(CHECKOUT), rev=revisions[names[run]])
            stored.get(path, str(target), recursive=True)
        return target

    return output


def _revisions() -> dict[str, str]:
    """The revision of each experiment that has succeeded, by name."""
    rows = dvc.api.exp_show(repo=str(CHECKOUT))
    return {row["Experiment"]: row["rev"] for row in rows if row["Experiment"] and row["State"] in (None, "Success")}


def _run(*command: str) -> None:
    code = subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, check=False).returncode
    if code:
        sys.exit(code)


def _metrics(name: str, revision: str | None, experiment: Experiment) -> dict[str, Plain]:
    if revision is None:
        print(f"\nThe experiment {name} failed; its last lines (dvc queue logs {name}):", file=sys.stderr, flush=True)
        print(
            "\n".join(_printed(sys.executable, "-m", "dvc", "queue", "logs", name).splitlines()[-10:]), file=sys.stderr
        )
        sys.exit(1)
    # headlines are in the experiment's commit, details in DVC's cache
    wanted = [stage for stage in experiment.stages if stage in ("autoattack", "foolbox", "masking", "pag_score")]
    found = {stage: json.loads(_printed("git", "show", f"{revision}:metrics/{stage}.json")) for stage in wanted}
    for stage in wanted:
        details = dvc.api.read(f"metrics/details/{stage}.json", repo=str(CHECKOUT), rev=revision)
        found[f"details/{stage}"] = json.loads(details)
    return found


def _printed(*command: str) -> str:
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout

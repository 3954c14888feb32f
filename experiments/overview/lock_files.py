"""DVC's lock files, which say what each stage ran with: whether that is what the parameters are now."""

import functools
from pathlib import Path
from typing import Any

from experiments.description.experiment import PARAMS
from experiments.description.file import Plain
from pag_core.errors import ArtifactError
from pag_core.params.reading import value_at
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.paths import CHECKED

LOCKS = ("dvc.lock", "stages/gradients/dvc.lock", "stages/toy/dvc.lock")


def locked_stages(locks: dict[str, bytes]) -> Plain:
    """The stages in lock files, whose contents are given by their places; raises ArtifactError for one that is damaged."""
    stages: Plain = {}
    for place, lock in locks.items():
        try:
            stages |= read_yaml(lock.decode("utf-8"))["stages"]
        except (TypeError, KeyError, ValueError) as error:
            raise ArtifactError(
                f"{place} is damaged ({error!r}); restore it (git checkout), or run dvc repro again"
            ) from None
    return stages


def outdated(stages: Plain, params: Plain) -> set[str]:
    """The outputs of locked stages which, or one before which, ran with other parameters or inputs than there are now."""
    makers = {out["path"]: (name, out["md5"]) for name, stage in stages.items() for out in stage["outs"]}

    @functools.cache
    def current(name: str) -> bool:
        tracked = stages[name].get("params", {}).get(PARAMS, {})
        inputs = [
            (dep["md5"], *makers[dep["path"]])
            for dep in stages[name].get("deps", [])
            if dep["path"] in makers and Path(dep["path"]) != CHECKED
        ]
        return all(_holds(params, key, value) for key, value in tracked.items()) and all(
            used == made and current(maker) for used, maker, made in inputs
        )

    return {path for path, (name, _) in makers.items() if not current(name)}


def _holds(params: Plain, key: str, value: Any) -> bool:
    try:
        return bool(value_at(params, key) == value)
    except (KeyError, TypeError):
        return False

"""DVC's lock files, which say what each stage ran with: whether that is what it would run with now."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from experiments.described_stages import PARAMS, Plain, described_stages, given_to, made_from, outputs_of, value_at
from experiments.images import is_arranged
from pag_core.errors import ArtifactError
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.code_identity import CHECKOUT, code_record
from pag_core.pipeline.places import CHECKED, CODE

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


def is_of_now(stages: Plain, params: Plain, wanted: tuple[str, ...]) -> bool:
    """Whether the locked stages `wanted`, and those before them, are described as they were and have the code of now.

    False also where one took images or a diffusion model of the user's own, which may have changed, unless images were arranged
    in a place that is named after their content. Of parameters, and of what stages made for one another, `outdated` tells.
    """
    described = described_stages(params)

    @functools.cache
    def holds(name: str) -> bool:
        return (
            name in stages
            and name in described
            and _as_described(stages[name], described[name])
            and all(dep["md5"] == code_md5(Path(dep["path"]).stem) for dep in _code_of(stages[name]))
            and all(is_arranged(CHECKOUT / path) for path in given_to(described, name, params))
            and all(holds(maker) for maker in made_from(described, name).values())
        )

    return all(holds(name) for name in wanted)


def _code_of(stage: Plain) -> list[Plain]:
    return [dep for dep in stage["deps"] if Path(dep["path"]).parent == CODE]


@functools.cache
def code_md5(program: str) -> str:
    """MD5 of the record of a stage's code, as DVC takes it: of the code when it is first asked for, as many runs ask."""
    return hashlib.md5(code_record(CHECKOUT / "stages" / f"{program}.py").encode()).hexdigest()


def _as_described(stage: Plain, described: Plain) -> bool:
    # an entry that is not a key is the file itself: all parameters
    keys = {key for key in described.get("params", []) if isinstance(key, str)}
    return (
        stage["cmd"] == described["cmd"]
        and {dep["path"] for dep in stage.get("deps", [])} == set(described["deps"])
        and {out["path"] for out in stage["outs"]} == set(outputs_of(described))
        and keys <= stage.get("params", {}).get(PARAMS, {}).keys()
    )


def _holds(params: Plain, key: str, value: Any) -> bool:
    try:
        return bool(value_at(params, key) == value)
    except (KeyError, TypeError):
        return False

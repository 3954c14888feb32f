"""The stages that dvc.yaml describes, as data, for parameters of one's own."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.places import CHECKED, CODE, METRICS

Plain = dict[str, Any]
PARAMS = "params.yaml"


def value_at(params: Plain, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def described_stages(params: Plain) -> dict[str, Plain]:
    """The stages of both dvc.yaml files with the values of `params` filled in; one of a matrix stands for each value."""
    found: dict[str, Plain] = {}
    for file in ("dvc.yaml", "stages/gradients/dvc.yaml"):
        for name, stage in read_yaml((CHECKOUT / file).read_text(encoding="utf-8"))["stages"].items():
            if name == "code":  # the fingerprints are taken here
                continue
            ((key, values),) = stage.get("matrix", {"": [""]}).items()
            for value in values:
                found[f"{name}@{value}" if key else name] = _filled_in(stage, {**params, "item": {key: value}})
    return found


def _filled_in(described: Any, params: Plain) -> Any:
    """`described` with the values of `${KEY}`, which stay the words that they are whatever is in them."""
    match described:
        case str():
            return re.sub(r"\$\{([\w.]+)\}", lambda found: str(value_at(params, found[1])), described)
        case list():
            return [_filled_in(part, params) for part in described]
        case dict():
            return {_filled_in(key, params): _filled_in(part, params) for key, part in described.items()}
        case _:
            return described


def outputs_of(stage: Plain) -> list[str]:
    """The files and folders that a stage writes."""
    entries = [*stage.get("outs", []), *stage.get("metrics", [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def inputs_of(stages: dict[str, Plain], name: str) -> dict[str, str]:
    """The outputs that a stage takes, and the stages that make them."""
    deps = [Path(path) for path in stages[name]["deps"]]
    return {
        output: maker
        for maker, stage in stages.items()
        for output in outputs_of(stage)
        if any(Path(output).is_relative_to(path) for path in deps)
    }


def made_from(stages: dict[str, Plain], name: str) -> dict[str, str]:
    """As `inputs_of`, without what a stage only waits for."""
    return {path: maker for path, maker in inputs_of(stages, name).items() if Path(path) != CHECKED}


def needed_for(stages: dict[str, Plain], wanted: Iterable[str]) -> list[str]:
    """The stages `wanted` and all before them, in the order of their descriptions."""
    found = set(wanted)
    waiting = list(found)
    while waiting:
        new = set(inputs_of(stages, waiting.pop()).values()) - found
        found |= new
        waiting += new
    return [name for name in stages if name in found]


def given_to(stages: dict[str, Plain], name: str, params: Plain) -> list[str]:
    """What a stage reads that no stage makes: images, or a diffusion model, that the parameters name."""
    made = [Path(output) for output in inputs_of(stages, name)]
    # of any dataset DVC takes it for an input, but only this one is read from it
    unread = [params["image_folder"]] if params["dataset"] != "image_folder" else []
    return [
        path
        for path in stages[name]["deps"]
        if path not in unread and Path(path).parent != CODE and not any(output.is_relative_to(path) for output in made)
    ]


def metrics_of(stage: Plain) -> dict[str, str]:
    """The metrics files that a stage writes, by name: `autoattack`, `details/autoattack`."""
    folder = f"{METRICS}/"
    paths = [path for path in outputs_of(stage) if path.startswith(folder)]
    return {path.removeprefix(folder).removesuffix(".json"): path for path in paths}

"""What a stage declares that it reads, in the words of dvc.yaml: a view of the parameters that has nothing else."""

import json
import re
from typing import Any, cast

from pag_core.params.sections import Params
from pag_core.params.values import Section

Reads = tuple[str, ...]  # as `train`, `objective.batch_norm`, `source_defaults.${source}`
# of a stage that writes no record
ALL: Reads = ("params.yaml",)
# where work runs, and where the network lies, is no part of an experiment's identity: every stage may read it, and no record
# has it. A network counts by its content
WHERE = {"device", "processes", "threads", "checkpoint_seconds", "feed.mode", "feed.budget_gb", "classifier_checkpoint"}
# the seed has its own place in a record, what `auto` stands for is in the place of `auto`, and data count by their content
ELSEWHERE = {"seed", "source_defaults", "image_folder", "diffusion_checkpoint", "own.reads"}


class UndeclaredParameter(LookupError):
    """A stage reads a parameter that it does not declare: a mistake in its code, not in params.yaml."""


class _View:
    """The `keys` of a section; `place` is what comes before its own, `train.` for one."""

    def __init__(self, section: Section, keys: set[str], stage: str, place: str = "") -> None:
        self._section, self._keys, self._stage, self._place = section, keys, stage, place

    def __getattr__(self, name: str) -> Any:
        field = type(self._section).model_fields.get(name)
        if field is None:
            raise AttributeError(f"{name} is no parameter")
        key = f"{self._place}{field.alias or name}"
        if key in self._keys:
            return getattr(self._section, name)
        if any(declared.startswith(f"{key}.") for declared in self._keys):
            return _View(getattr(self._section, name), self._keys, self._stage, f"{key}.")
        raise UndeclaredParameter(
            f"the stage {self._stage} reads {key} without declaring it; add it to the `reads` of its `stage(...)`, and to its "
            "params in dvc.yaml"
        )


def declared_params(params: Params, reads: Reads, stage: str) -> Params:
    """Of `params` what `reads` declares and where work runs; any other raises UndeclaredParameter that names it."""
    return params if reads == ALL else cast(Params, _View(params, WHERE.union(keys_of(reads, params)), stage))


def recorded_params(params: Params, reads: Reads) -> dict[str, Any]:
    """What `reads` declares as plain data for the record of an artifact: what its result depends on."""
    return params.section(*(key for key in keys_of(reads, params) if not {key, key.partition(".")[0]} & ELSEWHERE))


def validation_record(params: dict[str, Any]) -> str:
    """What a training reads of the section `validation` of `params` (plain data): all of it, or nothing."""
    return (json.dumps(params["validation"]) if params["train"]["validate_every"] else "none") + "\n"


def keys_of(reads: Reads, params: Params) -> list[str]:
    """`reads` with the values of `params` in the place of `${NAME}`."""
    plain = params.model_dump(by_alias=True)
    return [re.sub(r"\$\{(\w+)\}", lambda found: str(plain[found[1]]), key) for key in reads]

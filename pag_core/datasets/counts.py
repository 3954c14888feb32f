"""Counts that follow the data: what `auto` stands for where params.yaml counts images or classes."""

from typing import Any

import numpy as np

from pag_core.compute.processes import this_process
from pag_core.datasets.prepared import Dataset
from pag_core.params.declared import ALL, keys_of
from pag_core.params.sections import Params
from pag_core.pipeline.stage import OpenStage

# each is in the comment of its key in params.yaml
MOST = {
    "objective.classes_per_step": 3,
    "validation.images": 150,
    "autoattack.images": 200,
    "foolbox.images": 50,
    "masking.images": 100,
    "pag_score.images": 200,
    "pag_score.judged_images": 20,
    "pag_score.judge_images": 2000,
}


def slots(params: Params, classes: int) -> int:
    """Of how many of `classes` the source has a gradient of each image."""
    kept = params.gradient_store.classes_per_image if params.source in ("sbg", "own") else None
    return min(kept or classes, classes)


def automatic_counts(params: Params, dataset: Dataset) -> dict[str, int]:
    """The numbers by key that `auto` stands for in `params`: those of `MOST`, or at most what `dataset` has.

    A judge learns more images where a class is not among so many.
    """
    test = len(dataset.splits["test"])
    there = dict.fromkeys(MOST, test) | {
        "objective.classes_per_step": slots(params, dataset.classes),
        "validation.images": len(dataset.splits["validation"]),
        "pag_score.images": min(test, params.gradient_store.held_out_images),
    }
    numbers = {key: min(most, there[key]) for key, most in MOST.items()}
    first_of_each_class = np.unique(dataset.splits["train"].labels, return_index=True)[1]
    numbers["pag_score.judge_images"] = max(MOST["pag_score.judge_images"], int(first_of_each_class.max()) + 1)
    plain = params.model_dump(by_alias=True)
    parts = {key: key.split(".") for key in MOST}
    return {key: numbers[key] for key, (section, name) in parts.items() if plain[section][name] == "auto"}


def count(opened: OpenStage, dataset: Dataset) -> Params:
    """The parameters of a stage with numbers in the place of `auto`; a line of output has those that the stage reads."""
    params = opened.all_params
    counts = automatic_counts(params, dataset)
    plain: dict[str, Any] = params.model_dump(by_alias=True)
    for key, number in counts.items():
        section, name = key.split(".")
        plain[section][name] = number
    opened.all_params = Params.model_validate(plain)
    read = keys_of(opened.reads, params)
    shown = [
        f"{key} {number}" for key, number in counts.items() if opened.reads == ALL or {key, key.split(".")[0]} & {*read}
    ]
    if shown and this_process().leads:
        print(f"auto: {', '.join(shown)}", flush=True)
    return opened.params

"""Which classifiers of an experiment are the best by validation images, on which choices are made; test images have no say."""

import statistics

import typer

from experiments.description.experiment import Experiment
from experiments.description.file import Plain

ROBUST = "robust"


def settings_of(radii: dict[str, list[str]]) -> list[str]:
    """What an attack at these radii measures: `clean`, and `NORM RADIUS` of each."""
    return ["clean", *(f"{norm} {radius}" for norm, of_norm in radii.items() for radius in of_norm)]


def require_measured(experiment: Experiment, by: str) -> list[str]:
    """The settings whose mean decides: `by` itself, or all that are attacked.

    Raises BadParameter for one that is not measured.
    """
    settings = settings_of(next(iter(experiment.params.values()))["validation"]["radii"])
    if by not in {ROBUST, *settings}:
        raise typer.BadParameter(f"{by} is not one of: {', '.join([ROBUST, *settings])}", param_hint="--best")
    return settings[1:] if by == ROBUST else [by]


def best(experiment: Experiment, measured: dict[str, dict[str, Plain]], by: str) -> tuple[list[str], str]:
    """The best classifiers (several where they are equal), by their mean over seeds, and a sentence about them.

    None is the best before two have run with every seed, or where they differ in what is measured.
    """
    images = [[params[key] for key in ("dataset", "image_folder", "prepare")] for params in experiment.params.values()]
    attacks = [params["validation"] for params in experiment.params.values()]
    if any(one != images[0] for one in images) or any(one != attacks[0] for one in attacks):
        return [], "Best by validation: none, as the classifiers differ in dataset, prepare or validation."
    names = require_measured(experiment, by)
    whole = {name: runs for name, runs in experiment.runs.items() if measured.keys() >= {*runs}}
    means = {
        name: statistics.fmean(
            {**run["training"]["validation"], **run["training"]["proxy"]}[setting]
            for run in (measured[run] for run in runs)
            for setting in names
        )
        for name, runs in whole.items()
    }
    if len(means) < 2:
        return [], f"Best by validation: {len(means)} of {len(experiment.runs)} classifiers have run with all seeds."
    # the same numbers may have been added in another order
    found = [name for name, mean in means.items() if max(means.values()) - mean < 1e-9]
    said = f"{' and '.join(found)}{', which are equal' if len(found) > 1 else ''}: {100 * max(means.values()):.1f} %"
    of = f"mean of {', '.join(names)}" if len(names) > 1 else names[0]
    missing = [name for name in experiment.runs if name not in whole]
    left = f" Not all seeds have run of {', '.join(missing)}." if missing else ""
    return found, f"Best by validation ({of}): {said}.{left}"

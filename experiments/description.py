"""An experiment as data: parameters laid over params.yaml, several classifiers, published numbers beside them."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
import yaml

from pag_core.params.reading import parse_params
from pag_core.pipeline.code_identity import CHECKOUT

Plain = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """What is run: the parameters of each run (as params.yaml holds them), and the stages that are wanted of it.

    `runs` has the names of each classifier's runs, one for each seed. `classes` are the class folders taken from a folder of
    images, None takes all; `published` has clean accuracy and robust accuracies by classifier, in percent.
    """

    name: str
    params: dict[str, Plain]
    runs: dict[str, list[str]]
    stages: tuple[str, ...]
    classes: list[str] | None
    published: dict[str, list[float]]

    def on_images(self, folder: Path) -> "Experiment":
        """The same on the images of `folder`, as `image_folder` takes them."""
        chosen = {"dataset": "image_folder", "image_folder": str(folder.resolve())}
        return replace(self, params={name: {**plain, **chosen} for name, plain in self.params.items()})

    def only(self, classifiers: list[str]) -> "Experiment":
        """The same with these of its classifiers; raises BadParameter for one that it does not have."""
        if unknown := [name for name in classifiers if name not in self.runs]:
            raise typer.BadParameter(f"{unknown[0]} is not one of: {', '.join(self.runs)}", param_hint="--only")
        runs = {name: self.runs[name] for name in classifiers}
        wanted = {run for names in runs.values() for run in names}
        return replace(self, runs=runs, params={run: plain for run, plain in self.params.items() if run in wanted})


def base_params() -> Plain:
    """params.yaml as plain data."""
    content: Plain = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    return content


def laid_over(params: Plain, *layers: Plain) -> Plain:
    """`params` with the values of `layers` in place of its own; a section keeps what a layer does not name."""
    merged = dict(params)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            # grids of radii are values, not sections
            merged[key] = laid_over(merged[key], value) if both and not key.endswith("radii") else value
    return merged


def read_experiment(file: Path, size: str, changes: list[str]) -> Experiment:
    """The experiment that `file` describes at one of its sizes, with changes `KEY=VALUE` or `CLASSIFIER:KEY=VALUE`.

    Raises BadParameter for a size or key that does not exist, and ParamsError for a value that params.yaml refuses.
    """
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    if size not in described["sizes"]:
        raise typer.BadParameter(f"{size} is not one of: {', '.join(described['sizes'])}", param_hint="--size")
    chosen = dict(described["sizes"][size])
    classes = chosen.pop("classes", None)
    common = laid_over(base_params(), described["params"], chosen)
    params = {name: laid_over(common, layer) for name, layer in described["classifiers"].items()}
    for change in changes:
        _set(params, change)
    seeds = described.get("seeds")
    runs = {name: [name] if seeds is None else [f"{name}-seed{seed}" for seed in seeds] for name in params}
    # every classifier with the first seed, then with the next: what is broken off has something of each
    every = {
        runs[name][number]: plain if seed is None else {**plain, "seed": seed}
        for number, seed in enumerate(seeds or [None])
        for name, plain in params.items()
    }
    for run, plain in every.items():
        parse_params(plain, f"{file} ({size}, {run})")
    return Experiment(
        f"{file.stem}-{size}", every, runs, tuple(described["stages"]), classes, described.get("published", {})
    )


def _set(params: dict[str, Plain], change: str) -> None:
    key, separator, value = change.partition("=")
    name, colon, rest = key.partition(":")
    targets, dotted = ([name], rest) if colon else (list(params), key)
    *sections, last = dotted.split(".")
    for target in targets:
        place: Any = params.get(target)
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or last not in place:
            raise typer.BadParameter(f"{change}: no such parameter (SECTION.KEY=VALUE)", param_hint="--set")
        place[last] = yaml.safe_load(value)


def table(experiment: Experiment, autoattack: dict[str, Plain]) -> str:
    """The accuracies of each classifier in percent, and the published ones, as Markdown.

    `autoattack` has each run's metrics/autoattack.json. Several seeds give a mean and a range; those of the baseline are
    counted once for each seed.
    """
    first = next(iter(experiment.runs.values()))
    rows = {"vanilla": [autoattack[run]["baseline"] for run in first]}
    rows |= {name: [autoattack[run]["model"] for run in runs] for name, runs in experiment.runs.items()}
    settings = ["clean", *sorted(set(rows["vanilla"][0]) - {"clean"})]
    images = autoattack[first[0]]["images"]
    seeds = f", {len(first)} seeds: mean (range)" if len(first) > 1 else ""
    head = [f"classifier ({images} test images{seeds})", *settings]
    if experiment.published:
        head.append("published: clean, L2, Linf")
    lines = [_row(head), "|---" * len(head) + "|"]
    for name, found in rows.items():
        cells = [name, *(_over_seeds(accuracies[setting] for accuracies in found) for setting in settings)]
        if experiment.published:
            cells.append(", ".join(f"{value:.2f}" for value in experiment.published.get(name, [])))
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _over_seeds(fractions: Iterable[float]) -> str:
    percents = [100 * fraction for fraction in fractions]
    if len(percents) == 1:
        return f"{percents[0]:.1f}"
    return f"{statistics.mean(percents):.1f} ({min(percents):.1f} to {max(percents):.1f})"

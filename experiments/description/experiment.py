"""An experiment as data: parameters laid over params.yaml, several classifiers, and the table that they fill."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from experiments.description.file import DescribedRow, Plain, Setup, layers, read_description, refused
from experiments.description.grid import require_not_set, with_grid
from pag_core.figures.labels import baseline_label
from pag_core.params.reading import parse_params, plain_params
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.code_identity import CHECKOUT

PARAMS = "params.yaml"
BASE = CHECKOUT / PARAMS
PUBLISHED = CHECKOUT / "experiments/published.yaml"


@dataclass(frozen=True)
class Row:
    """A row of the experiment's table: the accuracies of `classifier`, or of the `baseline` that is trained beside it.

    `published` are the paper's numbers in percent, by the table's columns, on the dataset `published_on`; empty where there
    are none.
    """

    label: str
    classifier: str
    baseline: bool
    published: tuple[float | None, ...]
    published_on: str = ""


@dataclass(frozen=True)
class Experiment:
    """What is run: the parameters of each run (as params.yaml holds them), and the stages that are wanted of it.

    `runs` has the names of each classifier's runs, one for each seed. `settings` are the columns of the published numbers.
    `changes` and `chosen` are what the command changed of the description and chose from it. `sweep`: it has a grid.
    """

    name: str
    title: str
    params: dict[str, Plain]
    runs: dict[str, list[str]]
    stages: tuple[str, ...]
    rows: tuple[Row, ...]
    settings: tuple[str, ...]
    changes: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    sweep: bool = False

    @property
    def attacks(self) -> bool:
        """Whether test images are attacked; if not, its table is of validation images."""
        return _attacks(self.stages)

    def only(self, wanted: list[str]) -> "Experiment":
        """The same with these of its classifiers or runs, by name or number; raises BadParameter for what is neither."""
        numbers = {str(number): run for number, run in enumerate(self.params)}
        wanted = [name if name in self.runs else numbers.get(name, name) for name in wanted]
        if unknown := [name for name in wanted if name not in {*self.runs, *self.params}]:
            known = ", ".join([*self.runs, *(run for run in self.params if run not in self.runs)])
            raise typer.BadParameter(
                f"{unknown[0]} is not one of: {known}; nor a number up to {len(numbers) - 1}", param_hint="--only"
            )
        chosen = {name: [run for run in runs if {name, run} & {*wanted}] for name, runs in self.runs.items()}
        runs = {name: found for name, found in chosen.items() if found}
        params = {run: self.params[run] for run in self.params if any(run in found for found in runs.values())}
        return replace(
            self,
            runs=runs,
            params=params,
            rows=tuple(row for row in self.rows if row.classifier in runs),
            chosen=tuple(wanted),
        )


def base_params() -> Plain:
    """params.yaml as plain data; raises ParamsError for what is refused in it, before descriptions are laid over it."""
    found = plain_params(BASE.read_bytes(), PARAMS)
    parse_params(found, PARAMS)
    return found


def laid_over(params: Plain, *layers: Plain) -> Plain:
    """`params` with the values of `layers` in place of its own; a section keeps what a layer does not name."""
    merged = dict(params)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            # a radius of a norm and grids of radii are values, not sections: another norm takes the place of the first
            merged[key] = laid_over(merged[key], value) if both and not key.endswith(("radii", "_radius")) else value
    return merged


def read_experiment(file: Path, size: str, changes: list[str], images: Path | None = None) -> Experiment:
    """The experiment that `file` describes at one of its sizes, with changes `KEY=VALUE` or `CLASSIFIER:KEY=VALUE`.

    It is on the image folder `images`, or without one on the dataset of the description. Raises BadParameter for a file, size
    or key that does not exist, or where an image folder is needed; ParamsError for a value that params.yaml refuses.
    """
    described = read_description(file)
    if size not in described.sizes:
        raise typer.BadParameter(f"{size} is not one of: {', '.join(described.sizes)}", param_hint="--size")
    if described.at(size).needs_images and images is None:
        raise typer.BadParameter(f"{file.stem} ({size}) takes a folder of images", param_hint="--images")
    own = described.at(size)
    if own.stages is None or not (own.classifiers or own.grid):
        raise refused(f"{file}: {'classifiers' if own.stages else 'stages'} is missing, and the size {size} has none")
    given = {} if images is None else {"dataset": "image_folder", "image_folder": str(images.resolve())}
    common = laid_over(base_params(), *layers(file, described, size), given)
    # copies: layers share the sections that they do not name, and a change of one classifier is not one of all
    classifiers = with_grid(file, own.classifiers or {"": {}}, own.grid)
    params = {name: copy.deepcopy(laid_over(common, *laid)) for name, laid in classifiers.items()}
    seeds = own.seeds
    for change in changes:
        require_not_set(file, change, own.grid)
        if seeds is not None and change.partition("=")[0].rpartition(":")[2] == "seed":
            raise typer.BadParameter(
                f"{change}: {file} has seeds of its own, {', '.join(map(str, seeds))}; change them there, or choose one with "
                f"--only NAME-seed{seeds[0]}",
                param_hint="--set",
            )
        _set(params, change)
    runs = {name: [name] if seeds is None else [f"{name}-seed{seed}" for seed in seeds] for name in params}
    # every classifier with the first seed, then with the next: what is broken off has something of each
    every = {
        runs[name][number]: plain if seed is None else {**plain, "seed": seed}
        for number, seed in enumerate(seeds or [None])
        for name, plain in params.items()
    }
    for run, plain in every.items():
        parse_params(plain, f"{file} ({size}, {run})")
    # a table without attacks is of it, and the page of all experiments shows it of each
    measured = () if "validation" in own.stages else ("validation",)
    return Experiment(
        name=f"{file.stem}-{size}",
        title=file.stem if own.title is None else own.title,
        params=every,
        runs=runs,
        stages=(*measured, *own.stages),
        rows=_rows(file, own, params),
        settings=tuple(own.settings),
        changes=tuple(changes),
        sweep=bool(own.grid),
    )


def _attacks(stages: Iterable[str]) -> bool:
    return not {"autoattack", "foolbox"}.isdisjoint(stages)


def _rows(file: Path, own: Setup, params: dict[str, Plain]) -> tuple[Row, ...]:
    """The rows that are described; without any every classifier, after the first one's baseline where one is attacked.

    Raises BadParameter for a row of a classifier that there is not, and for published numbers that are not those of `settings`.
    """
    stages, rows = own.stages or [], own.rows
    if not rows:
        first = next(iter(params))
        method = params[first]["baseline_method"]
        label = "vanilla" if method == "standard" else baseline_label(method)
        baseline = {label: DescribedRow(of=first, baseline=True)}
        rows = {**(baseline if _attacks(stages) else {}), **{name: DescribedRow(of=name) for name in params}}
    content = read_yaml(PUBLISHED.read_text(encoding="utf-8"))
    datasets = content.pop("datasets")
    published = _by_place(content)
    found = []
    for label, row in rows.items():
        if row.of not in params:
            raise refused(f"{file}: the row {label} is of {row.of}, which is not one of: {', '.join(params)}")
        if row.published is not None and row.published not in published:
            table = row.published.partition("/")[0]
            known = [place for place in published if place.partition("/")[0] == table] or list(published)
            raise refused(
                f"{file}: the row {label} has the published numbers {row.published}, which is not one of: {', '.join(known)}"
            )
        numbers = published[row.published] if row.published is not None else ()
        # those of Foolbox are by its attacks
        if "autoattack" in stages and numbers and len(numbers) != len(own.settings):
            raise refused(
                f"{file}: settings are the columns of published numbers, as clean, L2 0.5, Linf 8/255; there are "
                f"{len(own.settings)} ({', '.join(own.settings)}), and the row {label} has {len(numbers)} numbers"
            )
        on = next((on for on, places in datasets.items() if f"{row.published}/".startswith(tuple(places))), "")
        found.append(Row(label, row.of, row.baseline, numbers, on))
    return tuple(found)


def _by_place(published: Plain, before: str = "") -> dict[str, tuple[float | None, ...]]:
    """Published numbers by the keys that lead to them: `table_1/resnet18/sbg`."""
    found: dict[str, tuple[float | None, ...]] = {}
    for key, value in published.items():
        place = f"{before}{key}"
        found |= _by_place(value, f"{place}/") if isinstance(value, dict) else {place: tuple(value)}
    return found


def _set(params: dict[str, Plain], change: str) -> None:
    key, separator, value = change.partition("=")
    name, colon, rest = key.partition(":")
    if colon and name not in params:
        raise typer.BadParameter(
            f"{change}: the classifier {name} is not one of: {', '.join(params)}", param_hint="--set"
        )
    targets, dotted = ([name], rest) if colon else (list(params), key)
    *sections, last = dotted.split(".")
    for target in targets:
        place: Any = params[target]
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or last not in place:
            raise typer.BadParameter(f"{change}: no such parameter (SECTION.KEY=VALUE)", param_hint="--set")
        try:
            place[last] = read_yaml(value)
        except ValueError as error:
            raise typer.BadParameter(f"{change}: the value is not YAML: {error}", param_hint="--set") from None

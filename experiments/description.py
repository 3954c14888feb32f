"""An experiment as data: parameters laid over params.yaml, several classifiers, and the table that they fill."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
import yaml

from pag_core.params.reading import parse_params
from pag_core.pipeline.code_identity import CHECKOUT

Plain = dict[str, Any]

# keys of a size that are no parameters
SPECIAL = ("title", "stages", "seeds", "classes", "needs_images", "classifiers", "rows", "settings")
PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Row:
    """A row of the experiment's table: the accuracies of `classifier`, or of the `baseline` that is trained beside it.

    `published` are the paper's numbers in percent, by the table's columns; empty where there are none.
    """

    label: str
    classifier: str
    baseline: bool
    published: tuple[float | None, ...]


@dataclass(frozen=True)
class Experiment:
    """What is run: the parameters of each run (as params.yaml holds them), and the stages that are wanted of it.

    `runs` has the names of each classifier's runs, one for each seed. `classes` are the class folders taken from a folder of
    images, None takes all. `settings` are the columns of the published numbers; `needs_images` says that a folder of images
    must be given.
    """

    name: str
    title: str
    params: dict[str, Plain]
    runs: dict[str, list[str]]
    stages: tuple[str, ...]
    classes: list[str] | None
    rows: tuple[Row, ...]
    settings: tuple[str, ...]
    needs_images: bool

    @property
    def names(self) -> dict[str, str]:
        """A name for each run that no run of another description or size has: of its DVC experiment, and of its results."""
        return {run: f"{self.name}-{run}" for run in self.params}

    @property
    def attacks(self) -> bool:
        """Whether test images are attacked; if not, its table is of validation images."""
        return _attacks(self.stages)

    def on_images(self, folder: Path) -> "Experiment":
        """The same on the images of `folder`, as `image_folder` takes them."""
        chosen = {"dataset": "image_folder", "image_folder": str(folder.resolve())}
        return replace(self, params={name: {**plain, **chosen} for name, plain in self.params.items()})

    def only(self, wanted: list[str]) -> "Experiment":
        """The same with these of its classifiers or runs; raises BadParameter for a name of neither."""
        if unknown := [name for name in wanted if name not in {*self.runs, *self.params}]:
            known = ", ".join([*self.runs, *(run for run in self.params if run not in self.runs)])
            raise typer.BadParameter(f"{unknown[0]} is not one of: {known}", param_hint="--only")
        chosen = {name: [run for run in runs if {name, run} & {*wanted}] for name, runs in self.runs.items()}
        runs = {name: found for name, found in chosen.items() if found}
        params = {run: self.params[run] for run in self.params if any(run in found for found in runs.values())}
        return replace(self, runs=runs, params=params, rows=tuple(row for row in self.rows if row.classifier in runs))


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
    # a size may have classifiers and rows of its own
    own = {**described, **{key: value for key, value in chosen.items() if key in SPECIAL}}
    common = laid_over(base_params(), *_layers(file, size))
    params = {name: laid_over(common, layer) for name, layer in own["classifiers"].items()}
    for change in changes:
        _set(params, change)
    seeds = own.get("seeds")
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
        name=f"{file.stem}-{size}",
        title=own.get("title", file.stem),
        params=every,
        runs=runs,
        stages=tuple(own["stages"]),
        classes=own.get("classes"),
        rows=_rows(own, list(params), baseline=_attacks(own["stages"])),
        settings=tuple(own.get("settings", ())),
        needs_images=bool(own.get("needs_images")),
    )


def _layers(file: Path, size: str) -> list[Plain]:
    """The parameters of a description at one of its sizes: those of the size that it is `like`, its own, the size's."""
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    chosen = dict(described["sizes"][size])
    before: list[Plain] = []
    if "like" in chosen:
        other, _, name = chosen.pop("like").partition(":")
        before = _layers(file.parent / other, name)
    of_size = {key: value for key, value in chosen.items() if key not in SPECIAL}
    return [*before, described.get("params", {}), of_size]


def _attacks(stages: Iterable[str]) -> bool:
    return not {"autoattack", "foolbox"}.isdisjoint(stages)


def _rows(own: Plain, classifiers: list[str], *, baseline: bool) -> tuple[Row, ...]:
    """The rows that are described; without any every classifier, after the first one's baseline if `baseline`."""
    rows = own.get("rows")
    if rows is None:
        first = {"vanilla": {"of": classifiers[0], "baseline": True}} if baseline else {}
        rows = {**first, **{name: {"of": name} for name in classifiers}}
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    found = []
    for label, row in rows.items():
        numbers: Any = published
        for key in str(row.get("published", "")).split("/") if "published" in row else []:
            numbers = numbers[key]
        beside = () if numbers is published else tuple(numbers)
        found.append(Row(label, row["of"], bool(row.get("baseline")), beside))
    return tuple(found)


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

"""The grid of a description: every combination of its values, with each of the classifiers, named by its values."""

import contextlib
import itertools
import re
from functools import reduce
from pathlib import Path
from typing import Any

import typer

from experiments.description.file import Plain, refused
from pag_core.params.reading import value_at

Grid = dict[str, list[Any]]
# what git takes in no name of an experiment, and the colon of `--set NAME:KEY=VALUE`
NOT_IN_A_NAME = re.compile(r"[^\w.+-]+|\.{2,}")


def with_grid(file: Path, classifiers: dict[str, Plain], grid: Grid) -> dict[str, tuple[Plain, ...]]:
    """The layers of parameters of each classifier by its name, with a grid `NAME-KEY-VALUE`; the last key varies fastest.

    Raises BadParameter for the seed, for a key that lies within another or that a classifier sets itself, and for two
    combinations of one name.
    """
    if not grid:
        return {name: (layer,) for name, layer in classifiers.items()}
    _require_apart(file, classifiers, grid)
    found: dict[str, tuple[Plain, ...]] = {}
    for (name, layer), values in itertools.product(classifiers.items(), itertools.product(*grid.values())):
        point = dict(zip(grid, values, strict=True))
        words = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in point.items()]
        whole = "-".join(filter(None, [name, *words]))
        if whole in found:
            asked = ", ".join(f"{key}: {value!r}" for key, value in point.items())
            raise refused(
                f"{file}: grid: the classifier of {asked} is called {whole}, as another is; give it a name of its own below "
                "classifiers"
            )
        found[whole] = (layer, *(_nested(key, value) for key, value in point.items()))
    return found


def require_not_set(file: Path, change: str, grid: Grid) -> None:
    """Raise BadParameter for a change `KEY=VALUE` of what the grid gives, or of a section around it."""
    key = change.partition("=")[0].rpartition(":")[2]
    if given := next((own for own in grid if f"{own}.".startswith(f"{key}.")), None):
        raise typer.BadParameter(
            f"{change}: {file} has a grid of {given}, {', '.join(map(_word, grid[given]))}; change it there, or choose some of "
            "its classifiers with --only",
            param_hint="--set",
        )


def _require_apart(file: Path, classifiers: dict[str, Plain], grid: Grid) -> None:
    if "seed" in grid:
        raise refused(f"{file}: grid: seed: seeds are no grid, as a table has their mean; write seeds: {grid['seed']}")
    for key in grid:
        if outer := next((other for other in grid if key.startswith(f"{other}.")), None):
            raise refused(f"{file}: grid: {key} is within {outer}, which is in the grid too; leave one out")
        for name, layer in classifiers.items():
            with contextlib.suppress(KeyError, TypeError):
                value = value_at(layer, key)
                raise refused(
                    f"{file}: grid: {key} is {value!r} in the classifier {name} already; leave it out there or in the grid"
                )


def _nested(key: str, value: Any) -> Plain:
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)


def _word(value: Any) -> str:
    plain = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return NOT_IN_A_NAME.sub("_", plain)

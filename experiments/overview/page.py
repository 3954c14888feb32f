"""The page of many experiments: one HTML file with a table to sort and filter, and figures to put side by side."""

import base64
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pag_core.errors import ArtifactError
from pag_core.figures.labels import METHODS
from pag_core.params.reading import without_auto
from pag_core.pipeline.paths import METRICS
from pag_core.report.results import FIGURES
from pag_core.report.templates import rendered

PARAMETERS = "parameters"
# where it ran is not part of an experiment
NO_PARAMETERS = {"device", "processes", "threads", "checkpoint_seconds", "check"}
# in the order in which results are read; files of other names follow
FILES = ("autoattack", "foolbox", "masking", "pag_score", "training")
# what does not tell of the experiment's classifier
SECONDARY = {"diffusion", "diffusion_online", "toy"}
# what a number was measured with: shown where it differs, because such numbers do not compare
MEASURED_WITH = {"attack", "images", "timestep"}
LONGEST_WEBP = 16383  # pixels of a side


@dataclass(frozen=True)
class Listed:
    """An experiment as the page lists it: its name, where it was found, and what there is of its results.

    `params` is params.yaml as plain data, `metrics` has the content of metrics/NAME.json by name, `figures` the PNG of
    figures/NAME.png by name. `verdicts` has, by the key of a metric of AutoAttack, a 1 for each image that stands and a 0 for
    each that falls, of the dataset with the fingerprint `attacked`. Anything may be missing.
    """

    name: str
    origin: str
    params: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    figures: dict[str, bytes]
    verdicts: dict[str, str] = field(default_factory=dict)
    attacked: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table: its group and title, its key in full, whether it is shown at first, and its decimals.

    Parameters are grouped by section, metrics by file. No two columns have the same key: that of a metric which a parameter
    has as well begins with `metrics/`.
    """

    group: str
    title: str
    key: str
    shown: bool
    metric: bool = False
    decimals: int | None = None


def render_overview(experiments: list[Listed]) -> str:
    """The page as HTML: nothing outside itself, each picture once, and names from the data are escaped.

    Equal experiments give equal bytes. Raises ArtifactError that names a figure which is damaged.
    """
    columns, rows = table(experiments)
    pictures, places = _pictures(experiments)
    names = sorted({name for experiment in experiments for name in experiment.figures}, key=_figure_order)
    content = {
        "columns": [vars(column) for column in columns],
        "experiments": [
            {"cells": cells, "figures": found, "verdicts": listed.verdicts, "attacked": listed.attacked}
            for listed, cells, found in zip(experiments, rows, places, strict=True)
        ],
        "figures": [{"name": name, "caption": FIGURES.get(name, "")} for name in names],
        "pictures": pictures,
    }
    return rendered(Path(__file__).with_name("overview.html"), content=content, experiments=len(experiments))


def table(experiments: list[Listed]) -> tuple[list[Column], list[list[str | float | None]]]:
    """The columns, and for each experiment its cells: a number, a text, or None where it has no such value.

    Names first, then the seed and the other parameters in the order of params.yaml, then metrics. At first those parameters
    are shown that differ, and of the metrics those of the model.
    """
    leaves = [dict(_parameters(experiment.params)) for experiment in experiments]
    measured = [dict(_metrics(experiment.metrics)) for experiment in experiments]
    keys = dict.fromkeys([("seed",), *(key for found in leaves for key in found)])
    # sections stay together, also where only some experiments have all of their keys
    groups = list(dict.fromkeys([PARAMETERS, *(_group(key) for key in keys)]))
    columns = [
        Column("", "experiment", "name", True),
        Column("", "from", "from", len({e.origin for e in experiments}) > 1),
    ]
    cells: list[list[str | float | None]] = [[experiment.name, experiment.origin] for experiment in experiments]

    def add(found: list[Any], column: Column) -> None:
        columns.append(column)
        for row, value in zip(cells, found, strict=True):
            row.append(value)

    for key in sorted(keys, key=lambda key: groups.index(_group(key))):
        found = [values.get(key) for values in leaves]
        shown = key == ("seed",) or _differ(found)
        # the toy experiment is another one, whose epochs and lambda are not those of the classifier
        title = ".".join(key if key[0] == "toy" else key[1:] or key)
        add(found, Column(_group(key), title, ".".join(key), shown))
    taken = {column.key for column in columns}
    for key in sorted({key for values in measured for key in values}, key=_metric_order):
        found = [values.get(key) for values in measured]
        name = ".".join(key)
        name = f"{METRICS}/{name}" if name in taken else name
        of_model = key[0] not in SECONDARY and "baseline" not in " ".join(key)
        shown = of_model and (key[-1] not in MEASURED_WITH or _differ(found))
        add(found, Column(f"{METRICS}/{key[0]}", " ".join(key[1:]), name, shown, True, _decimals(found)))
    return columns, cells


def _group(key: tuple[str, ...]) -> str:
    return key[0] if len(key) > 1 else PARAMETERS


def _parameters(params: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str | float]]:
    """Values by key; `auto` as what it stands for, and without the sections of methods that the experiment does not use."""
    used = {params.get("method"), params.get("baseline_method")}
    unused = NO_PARAMETERS | (METHODS.keys() - used)
    for key, value in _leaves({name: part for name, part in without_auto(params).items() if name not in unused}):
        yield key, _cell(value)


def _metrics(metrics: dict[str, dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], str | float]]:
    for key, value in _leaves(metrics):
        if value is not None:
            yield key, _cell(value)


def _leaves(content: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, (*before, str(key)))
    else:
        yield before, content


def _cell(value: Any) -> str | float:
    """A finite number as it is, anything else as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _differ(found: list[Any]) -> bool:
    return len({value for value in found if value is not None}) > 1


def _decimals(found: list[Any]) -> int | None:
    """Three decimals for fractions, so that a column can be read down; None leaves numbers as they are."""
    numbers = [value for value in found if isinstance(value, int | float)]
    return 3 if any(isinstance(value, float) for value in numbers) and max(map(abs, numbers)) >= 0.01 else None


def _metric_order(key: tuple[str, ...]) -> tuple[Any, ...]:
    known = FILES.index(key[0]) if key[0] in FILES else len(FILES)
    # what was measured with before what was measured, clean accuracy before that under attack
    return known, key[0], key[-1] not in MEASURED_WITH, "baseline" in " ".join(key), key[-1] != "clean", key


def _figure_order(name: str) -> tuple[int, str]:
    return (list(FIGURES).index(name) if name in FIGURES else len(FIGURES)), name


def _pictures(experiments: list[Listed]) -> tuple[list[str], list[dict[str, int]]]:
    """Each different picture once, as a data URL, and for each experiment the number of its picture by the figure's name.

    Pictures of the same pixels are one, whatever their files say they were drawn from.
    """
    numbers: dict[bytes, int] = {}
    pictures: dict[str, int] = {}
    places: list[dict[str, int]] = []
    for experiment in experiments:
        places.append({})
        for name, png in sorted(experiment.figures.items()):
            if png not in numbers:
                url = _as_url(png, f"figures/{name}.png of {experiment.name}")
                numbers[png] = pictures.setdefault(url, len(pictures))
            places[-1][name] = numbers[png]
    return list(pictures), places


def _as_url(png: bytes, place: str) -> str:
    """A picture as lossless WebP, the same pixels in a third of the bytes; as PNG where it is too long for that."""
    kind, content = "png", png
    try:
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            if max(picture.size) <= LONGEST_WEBP:
                compact = io.BytesIO()
                picture.save(compact, "WEBP", lossless=True)
                kind, content = "webp", compact.getvalue()
    except Exception as error:  # Pillow's readers raise of many kinds
        raise ArtifactError(
            f"{place} is damaged ({type(error).__name__}: {error}); run the stage figures again"
        ) from None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"

"""What the runs of an experiment measured, as a table beside what the paper publishes: for people, or as CSV."""

import csv
import io
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.best import ROBUST, best, settings_of
from experiments.description.experiment import Experiment, Row
from experiments.description.file import Plain
from pag_core.evaluation.attacks import FOOLBOX_NAMES
from pag_core.figures.labels import seeds_label

# each run's metrics by the names of their files, as "autoattack" and "details/foolbox"; a run that is not there is a gap
Measured = dict[str, dict[str, Plain]]


@dataclass(frozen=True)
class Cell:
    """A number of a table: accuracies in percent, one for each seed that was run, and the published one if there is one.

    `alike`: both are of the same dataset. `of` are the images in words, `images` their number.
    """

    row: str
    setting: str
    ours: tuple[float, ...]
    published: float | None
    published_setting: str
    images: int | None
    alike: bool = False
    of: str = "test images"

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None is a gap."""
        return statistics.mean(self.ours) if self.ours else None

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, in points; None where they are of different datasets."""
        return None if self.mean is None or self.published is None or not self.alike else self.mean - self.published


def cells(experiment: Experiment, measured: Measured) -> list[Cell]:
    """Every number of the experiment's tables."""
    return [cell for table in tables(experiment, measured) for cell in table]


def tables(experiment: Experiment, measured: Measured) -> list[list[Cell]]:
    """The numbers of each table: AutoAttack's and Foolbox's where they were wanted, validation's in sweeps or without those."""
    kinds = {"validation": _of_validation, "autoattack": _of_autoattack, "foolbox": _of_foolbox}
    wanted = [stage for stage in kinds if stage in experiment.stages]
    found = []
    for of_row in [kinds[stage] for stage in wanted if stage != "validation" or experiment.sweep or len(wanted) == 1]:
        table: list[Cell] = []
        for row in experiment.rows:
            runs = [measured[run] for run in experiment.runs[row.classifier] if run in measured]
            table += of_row(experiment, row, runs)
        found.append(table)
    return found


def _of_validation(experiment: Experiment, row: Row, runs: list[dict[str, Plain]]) -> Iterator[Cell]:
    """What is measured on the validation split: the clean accuracy, and that under APGD, by which choices are made."""
    validation = _params(experiment, row)["validation"]
    measured = [{**run["training"]["validation"], **run["training"]["proxy"]} for run in runs]
    # as counted: in the parameters they may be auto
    images = runs[0]["details/training"]["provenance"]["params"]["validation"]["images"] if runs else None
    for name in [] if row.baseline else settings_of(validation["radii"]):
        ours = tuple(100 * run[name] for run in measured)
        # beside another table of the same settings
        setting = f"validation {name}" if experiment.attacks else name
        yield Cell(row.label, setting, ours, None, "", images, of="validation images under APGD (clean: all of them)")


def _of_autoattack(experiment: Experiment, row: Row, runs: list[dict[str, Plain]]) -> Iterator[Cell]:
    names = _attacked(experiment, row)
    who = "baseline" if row.baseline else "model"
    published = (
        dict(zip(experiment.settings, row.published, strict=True)) if experiment.settings and row.published else {}
    )
    for name in names:
        beside = counterpart(name, names, experiment.settings)
        ours = tuple(100 * run["autoattack"][who][name] for run in runs)
        images = runs[0]["autoattack"]["images"] if runs else None
        setting, alike = beside if beside in published else "", _alike(experiment, row)
        yield Cell(row.label, name, ours, published.get(beside), setting, images, alike)


def counterpart(name: str, ours: list[str], published: tuple[str, ...]) -> str:
    """The published setting that stands beside our `name`: the very same, or the only one of its norm; empty where none is.

    Which of several radii is meant cannot be told, as those of a miniature are others.
    """
    of_norm = [
        [setting for setting in settings if setting.split()[0] == name.split()[0]] for settings in (ours, published)
    ]
    if name in published:
        return name
    return of_norm[1][0] if [len(settings) for settings in of_norm] == [1, 1] else ""


def _unmatched(experiment: Experiment) -> list[str]:
    """The published settings that stand beside no number of ours, in any row that has published ones."""
    rows = [row for row in experiment.rows if row.published and "autoattack" in experiment.stages]
    beside = {
        counterpart(name, _attacked(experiment, row), experiment.settings)
        for row in rows
        for name in _attacked(experiment, row)
    }
    return [setting for setting in experiment.settings if rows and setting not in beside]


def _attacked(experiment: Experiment, row: Row) -> list[str]:
    return settings_of(_params(experiment, row)["autoattack"]["radii"])


def _params(experiment: Experiment, row: Row) -> Plain:
    return experiment.params[experiment.runs[row.classifier][0]]


def _alike(experiment: Experiment, row: Row) -> bool:
    """Whether the published numbers of the row are of the same images: the dataset with all its classes, in its own size."""
    params = _params(experiment, row)
    whole = params["prepare"]["classes"] is None and params["prepare"]["image_size"] is None
    return whole and params["dataset"] == row.published_on


def _of_foolbox(experiment: Experiment, row: Row, runs: list[dict[str, Plain]]) -> Iterator[Cell]:
    """A line for each attack, which has the mean over the radii of the grid; the paper does not state its own.

    Published numbers are those of the first attacks of `FOOLBOX_NAMES`, which are Table 6's; further attacks have none, and
    none has where the published ones are of AutoAttack.
    """
    found = [run["details/foolbox"]["baseline" if row.baseline else "model"] for run in runs]
    further = {name for attacks in found for name in attacks} - {"clean", *FOOLBOX_NAMES}
    titles = FOOLBOX_NAMES | {name: name for name in sorted(further)}
    images = runs[0]["details/foolbox"]["images"] if runs else None
    beside = () if "autoattack" in experiment.stages else row.published
    for (name, title), published in itertools.zip_longest(titles.items(), beside):
        ours = tuple(_mean_over_radii(attacks[name]) for attacks in found if name in attacks)
        yield Cell(title, row.label, ours, published, "radii not stated", images, _alike(experiment, row))


def _mean_over_radii(found: Plain) -> float:
    return 100 * statistics.fmean(value for radius, value in found.items() if radius.startswith("L"))


def markdown(experiment: Experiment, measured: Measured, by: str | None = None) -> str:
    """The tables for people: ours (mean and range over seeds), the published number and the difference in points.

    In a sweep, or by what `by` names, the best by validation is marked, and named below.
    """
    by = ROBUST if by is None and experiment.sweep else by
    chosen, said = ([], "") if by is None else best(experiment, measured, by)
    marked = {row.label for row in experiment.rows if row.classifier in chosen and not row.baseline}
    parts = [
        experiment.title,
        *(_for_people(experiment, table, marked) for table in tables(experiment, measured)),
        said,
    ]
    parts = [part for part in parts if part]
    if experiment.changes:
        parts.append(f"Changed from the description: {', '.join(experiment.changes)}.")
    if experiment.chosen:
        parts.append(f"Of its classifiers and runs only: {', '.join(experiment.chosen)}.")
    if unmatched := _unmatched(experiment):
        parts.append(f"Published and not shown, as no one column of ours is its counterpart: {', '.join(unmatched)}.")
    return "\n\n".join(parts) + "\n"


def _for_people(experiment: Experiment, found: list[Cell], marked: set[str]) -> str:
    def named(label: str) -> str:
        return f"**{label}** (best by validation)" if label in marked else label

    settings = list(dict.fromkeys(cell.setting for cell in found))
    beside = {cell.setting: cell.published_setting for cell in found if cell.published is not None}
    compared = {cell.setting for cell in found if cell.published is not None and cell.alike}
    head = [""]
    for setting in settings:
        head += [named(setting)]
        head += [f"published, {beside[setting]}"] if setting in beside else []
        head += ["difference"] if setting in compared else []
    lines = [_line(head), "|---" * len(head) + "|"]
    seeds = max((len(cell.ours) for cell in found), default=0)
    for label in dict.fromkeys(cell.row for cell in found):
        by_setting = {cell.setting: cell for cell in found if cell.row == label}
        entries = [named(label)]
        for setting in settings:
            cell = by_setting.get(setting)
            entries.append("" if cell is None else _over_seeds(cell.ours, seeds))
            if setting in beside:
                published = cell is not None and cell.published is not None
                entries.append(f"{cell.published:.2f}" if cell is not None and published else "")
            if setting in compared:
                difference = None if cell is None else cell.difference
                entries.append("" if difference is None else f"{difference:+.1f}")
        lines.append(_line(entries))
    wanted = max((len(runs) for runs in experiment.runs.values()), default=0)
    counted = seeds_label(wanted) if seeds in (0, wanted) else f"{seeds} of {seeds_label(wanted)}"
    images = " and ".join(str(images) for images in sorted({cell.images for cell in found if cell.images is not None}))
    attacked = f"{images} {found[0].of}" if images else "nothing has run yet"
    return "\n".join([*lines, "", f"Percent; {attacked}; {counted}{', mean (range)' if seeds > 1 else ''}."])


def as_csv(experiment: Experiment, measured: Measured) -> str:
    """One line for each number, in percent and points; what is empty was not run, or not published."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "table",
            "row",
            "setting",
            "mean",
            "lowest",
            "highest",
            "seeds",
            "images",
            "published",
            "published_setting",
            "difference",
        ]
    )
    for cell in cells(experiment, measured):
        ours = (
            ["", "", ""]
            if cell.mean is None
            else [f"{value:.2f}" for value in (cell.mean, min(cell.ours), max(cell.ours))]
        )
        published = ["", ""] if cell.published is None else [f"{cell.published:.2f}", cell.published_setting]
        difference = "" if cell.difference is None else f"{cell.difference:.2f}"
        writer.writerow(
            [experiment.name, cell.row, cell.setting, *ours, len(cell.ours), cell.images or "", *published, difference]
        )
    return text.getvalue()


def _line(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _over_seeds(percents: tuple[float, ...], most: int) -> str:
    """Mean and range; with the number of seeds where it is not `most`, that of the table."""
    if not percents:
        return "not run"
    notes = [f"{min(percents):.1f} to {max(percents):.1f}"] if len(percents) > 1 else []
    if len(percents) != most:
        notes.append(seeds_label(len(percents)))
    return f"{statistics.mean(percents):.1f}" + (f" ({'; '.join(notes)})" if notes else "")

"""Accuracy against the radius of PGD, of all models of an experiment in one plot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pag_core.evaluation.attacks import norm_and_radius, norm_label, settings_by_norm
from pag_core.figures.fonts import escaped
from pag_core.figures.labels import seeds_label
from pag_core.figures.model_marks import Fill, Kind, fills
from pag_core.figures.palette import MUTED_COLOUR, OUTSIDE_LEGEND, SMALL_SIZE, TITLE, pad, style, tidy
from pag_core.params.radii import radius_value

# of rows of the same kind, as those that differ in lambda alone, in the order in which they come
LINES = ("solid", "dashed", "dotted", "dashdot", (0, (5, 1)), (0, (1, 3)))
CLEAN = "clean"


@dataclass(frozen=True)
class RadiusCurve:
    """Accuracies (fractions) of a row, one for each seed, by `clean` and `NORM RADIUS`."""

    label: str
    kind: Kind
    accuracies: dict[str, tuple[float, ...]]


def radius_curves(curves: Sequence[RadiusCurve], *, steps: int) -> Figure:
    """Accuracy under PGD of `steps` steps against radius, a panel for each norm and a line for each row.

    A line is the mean over seeds, and a band around it their range; a row of fewer seeds than the others says so. Clean
    accuracy is at radius 0.
    """
    seeds = max(len(curve.accuracies[CLEAN]) for curve in curves)
    curves = [replace(curve, label=_counted(curve, seeds)) for curve in curves]
    settings = dict.fromkeys(name for curve in curves for name in curve.accuracies if name != CLEAN)
    grouped = settings_by_norm(list(settings))
    filled = fills(curve.kind for curve in curves)
    lines: dict[str, tuple[Kind, Fill, object]] = {}
    for curve in curves:
        before = sum(replace(kind, radius=curve.kind.radius) == curve.kind for kind, _, _ in lines.values())
        lines[curve.label] = (curve.kind, filled[curve.kind], LINES[before % len(LINES)])
    with style(lines):
        figure = Figure(figsize=(max(5.2 * len(grouped), 7.2), 5.4), layout="constrained")
        panels = figure.subplots(1, len(grouped), squeeze=False, sharey=True)[0]
        for axes, (norm, keys) in zip(panels, grouped.items(), strict=True):
            for curve in curves:
                _draw(axes, curve, keys, lines[curve.label])
            axes.set_title(f"{norm_label(norm)} attacks", pad=8)
            axes.set_xlabel(f"radius in {norm_label(norm)}, pixels in [0, 1]")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
            tidy(axes)
        panels[0].set_ylabel("accuracy")
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.suptitle(f"Accuracy against the radius of PGD-{steps}", **TITLE)
        # named afterwards: matplotlib leaves out of a legend what begins with an underscore
        handles = [
            Line2D([], [], label=str(number), **_look(*look))  # type: ignore[arg-type]
            for number, look in enumerate(lines.values())
        ]
        said = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
        legend = figure.legend(handles=handles, title=said, **{**OUTSIDE_LEGEND, "ncols": 4})
        for text, label in zip(legend.get_texts(), lines, strict=True):
            text.set_text(escaped(label))
        legend.get_title().set(fontsize=SMALL_SIZE, color=MUTED_COLOUR)
        pad(figure)
    return figure


def _counted(curve: RadiusCurve, most: int) -> str:
    count = len(curve.accuracies[CLEAN])
    return curve.label if count == most else f"{curve.label} ({seeds_label(count)})"


def _look(kind: Kind, fill: Fill, line: object) -> dict[str, object]:
    return {
        "color": kind.colour, "marker": kind.marker, "markersize": 5, "fillstyle": fill, "linestyle": line, "linewidth": 1.6
    }  # fmt: skip


def _draw(axes: Axes, curve: RadiusCurve, keys: list[str], look: tuple[Kind, Fill, object]) -> None:
    points = [(0.0, curve.accuracies[CLEAN])]
    points += [
        (radius_value(norm_and_radius(key)[1]), curve.accuracies[key]) for key in keys if key in curve.accuracies
    ]
    radii = [radius for radius, _ in points]
    means = [sum(values) / len(values) for _, values in points]
    axes.plot(radii, means, clip_on=False, zorder=3, **_look(*look))  # type: ignore[arg-type]
    lowest, highest = ([choose(values) for _, values in points] for choose in (min, max))
    axes.fill_between(radii, lowest, highest, color=curve.kind.colour, alpha=0.12, linewidth=0)

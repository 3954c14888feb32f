"""The toy dataset's decision regions without and with alignment (Fig. 4): the border of the classes around the test points."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from torch import nn

from pag_core.datasets.prepared import Split
from pag_core.figures.palette import (
    CLASS_COLOURS,
    LABEL_SIZE,
    MUTED_COLOUR,
    OUTSIDE_LEGEND,
    TEXT_COLOUR,
    TITLE,
    pad,
    style,
)
from pag_core.toy.exact_robustness import class_borders
from pag_core.toy.points import CLASSES, MODES, SLOPE

# pixels of the regions' picture for each unit of x1 and x2
FINENESS = 5
MARKERS = ("o", "^")
# light enough for the points of the same colour to stand out
AREA_ALPHA = 0.35


@dataclass(frozen=True)
class Panel:
    """One network as `class_borders` takes it, its name, and its accuracies (fractions): `clean`, `pgd` and `exact`."""

    name: str
    network: nn.Sequential
    accuracy: dict[str, float]


def decision_boundary(panels: list[Panel], test: Split, *, radius: float, steps: int) -> Figure:
    """A panel for each network: its class at every place, the border between them, and the points of `test`.

    A circle around each mode's centre shows how far an attack of `radius` (L2) can move a point; PGD made `steps` steps.
    """
    places = test.pixels().flatten(1).double().numpy()
    low, high = places.min(0) - 1.2 * radius, places.max(0) + 1.2 * radius
    with style():
        figure = Figure(figsize=(8.6, 7.4), layout="constrained")
        for number, (axes, panel) in enumerate(
            zip(figure.subplots(1, len(panels), sharex=True, sharey=True), panels, strict=True)
        ):
            _draw_regions(axes, panel.network, low, high)
            _draw_points(axes, places, test.labels.numpy())
            _draw_reach(axes, radius)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="x₁", aspect="equal")
            clean, pgd, exact = (f"{100 * panel.accuracy[kind]:.1f} %" for kind in ("clean", "pgd", "exact"))
            axes.set_title(f"{panel.name}\nclean {clean}, PGD-{steps} {pgd}, exact {exact}", fontsize=LABEL_SIZE)
            if number == 0:
                axes.set_ylabel("x₂")
        figure.suptitle("Decision boundaries on the toy dataset", **TITLE)
        figure.legend(handles=_legend(radius), **OUTSIDE_LEGEND)
        pad(figure)
    return figure


def _draw_regions(axes: Axes, network: nn.Sequential, low: np.ndarray, high: np.ndarray) -> None:
    counts = (FINENESS * (high - low)).astype(int)
    # the centres of the pixels
    columns, rows = (
        a + (np.arange(count) + 0.5) * (b - a) / count for a, b, count in zip(low, high, counts, strict=True)
    )
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2, 1, 1)
    classes = network(torch.from_numpy(grid).float()).argmax(1).numpy().reshape(len(rows), len(columns))
    axes.imshow(
        classes, cmap=ListedColormap(CLASS_COLOURS), vmin=0, vmax=CLASSES - 1, alpha=AREA_ALPHA, origin="lower",
        extent=(low[0], high[0], low[1], high[1]), interpolation="nearest",
    )  # fmt: skip
    axes.add_collection(LineCollection(list(class_borders(network, low, high)), colors=TEXT_COLOUR, linewidths=1.2))


def _draw_points(axes: Axes, places: np.ndarray, labels: np.ndarray) -> None:
    for label, (colour, marker) in enumerate(zip(CLASS_COLOURS, MARKERS, strict=True)):
        axes.plot(
            *places[labels == label].T, linestyle="", marker=marker, markersize=4, color=colour,
            markeredgecolor=TEXT_COLOUR, markeredgewidth=0.3,
        )  # fmt: skip


def _draw_reach(axes: Axes, radius: float) -> None:
    for centre in (x1 for centres in MODES for x1 in centres):
        axes.add_patch(Circle((centre, SLOPE * centre), radius, fill=False, edgecolor=MUTED_COLOUR, linestyle=":"))


def _legend(radius: float) -> list[Line2D | Patch]:
    points = [
        Line2D(
            [], [], linestyle="", marker=marker, markersize=6, color=colour, markeredgecolor=TEXT_COLOUR,
            markeredgewidth=0.3, label=f"class {label}: test points",
        )
        for label, (colour, marker) in enumerate(zip(CLASS_COLOURS, MARKERS, strict=True))
    ]  # fmt: skip
    areas = [
        Patch(facecolor=colour, alpha=AREA_ALPHA, label=f"class {label}: predicted")
        for label, colour in enumerate(CLASS_COLOURS)
    ]
    border = Line2D([], [], color=TEXT_COLOUR, linewidth=1.2, label="border")
    reach = Line2D([], [], color=MUTED_COLOUR, linestyle=":", label=f"radius of the attack: {radius:g}")
    return [points[0], areas[0], points[1], areas[1], border, reach]

"""Accuracy against the radius of the attack: PGD curves of model and baseline, and AutoAttack's points."""

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pag_core.evaluation.attacks import norm_and_radius, norm_label, settings_by_norm
from pag_core.figures.palette import (
    BASELINE_COLOUR,
    MODEL_COLOUR,
    MUTED_COLOUR,
    OUTSIDE_LEGEND,
    SMALL_SIZE,
    TITLE,
    pad,
    style,
    tidy,
)
from pag_core.params.radii import radius_value

LINES: tuple[tuple[str, str, Literal["-", "--"]], ...] = (
    ("baseline", BASELINE_COLOUR, "--"),
    ("model", MODEL_COLOUR, "-"),
)


def robustness_radius(masking: dict[str, Any], autoattack: dict[str, Any], *, model: str, beside: str) -> Figure:
    """Accuracy against radius, a panel per norm, from the contents of metrics/masking.json and metrics/autoattack.json.

    PGD curves start at the clean accuracy on their own images (radius 0); stars are AutoAttack. A sound curve falls to
    zero (the check against gradient masking), and AutoAttack lies on or below it.
    """
    settings = [*masking["curve"]["model"], *autoattack["model"]["per_attack"]]
    grouped = settings_by_norm(list(dict.fromkeys(settings)))
    with style():
        figure = Figure(figsize=(max(4.4 * len(grouped), 6.4), 4.4), layout="constrained")
        panels = figure.subplots(1, len(grouped), squeeze=False, sharey=True)[0]
        for axes, (norm, keys) in zip(panels, grouped.items(), strict=True):
            _draw(axes, keys, masking, autoattack)
            axes.set_title(f"{norm_label(norm)} attacks", pad=8)
            axes.set_xlabel(f"radius in {norm_label(norm)}, pixels in [0, 1]")
            tidy(axes)
        panels[0].set_ylabel("accuracy")
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.suptitle("Accuracy against the radius of the attack", **TITLE)
        note = f"PGD: {masking['images']} test images; AutoAttack: {autoattack['images']}"
        legend = figure.legend(handles=_legend(model, beside, masking["pgd_steps"]), title=note, **OUTSIDE_LEGEND)
        legend.get_title().set(fontsize=SMALL_SIZE, color=MUTED_COLOUR)
        pad(figure)
    return figure


def _draw(axes: Axes, keys: list[str], masking: dict[str, Any], autoattack: dict[str, Any]) -> None:
    for who, colour, line in LINES:
        curve, exact = masking["curve"][who], autoattack[who]
        points = [(radius_value(norm_and_radius(key)[1]), curve[key]) for key in keys if key in curve]
        if points:
            radii, accuracies = zip((0.0, masking["clean"][who]), *points, strict=True)
            axes.plot(radii, accuracies, color=colour, linestyle=line, linewidth=2, marker="o", markersize=4)
        else:
            axes.plot([0], [masking["clean"][who]], color=colour, marker="o", markersize=4)
        stars = [(radius_value(norm_and_radius(key)[1]), exact[key]) for key in keys if key in exact]
        if stars:
            axes.plot(
                *zip(*stars, strict=True), color=colour, linestyle="", marker="*", markersize=15, markeredgecolor="white",
                markeredgewidth=1, zorder=5, clip_on=False,
            )  # fmt: skip
    axes.set_xlim(0, 1.05 * max(radius_value(norm_and_radius(key)[1]) for key in keys))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _legend(model: str, beside: str, steps: int) -> list[Line2D]:
    curves = [
        Line2D(
            [], [], color=colour, linestyle=line, linewidth=2, marker="o", markersize=4, label=f"{name}, PGD-{steps}"
        )
        for (_, colour, line), name in zip(LINES, (beside, model), strict=True)
    ]
    star = Line2D([], [], color=MUTED_COLOUR, linestyle="", marker="*", markersize=12, label="AutoAttack")
    return [*curves, star]

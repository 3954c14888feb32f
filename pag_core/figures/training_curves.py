"""Training curves of classifier and baseline: the terms of Eq. 4 and the accuracies, by epoch."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pag_core.evaluation.attacks import norm_label
from pag_core.figures.palette import BASELINE_COLOUR, MODEL_COLOUR, OUTSIDE_LEGEND, TITLE, pad, style, tidy
from pag_core.pipeline.curves import VALIDATION

Curves = dict[str, list[tuple[int, float]]]


PANELS = {
    "cross_entropy": "Cross-entropy",
    "accuracy": "Training accuracy",
    "alignment": "Alignment loss (Eq. 5)",
    "validation_clean": "Validation accuracy",
    "validation_L2": "Validation, APGD in L2",
    "validation_Linf": f"Validation, APGD in {norm_label('Linf')}",
}
PANELS_IN_A_ROW = 4
# this few points are easier to see with markers than as a line alone
FEW_EPOCHS = 15


def training_curves(
    classifier: Curves, baseline: Curves, *, model: str, beside: str, kept: dict[str, int] | None = None
) -> Figure:
    """The terms of Eq. 4 per epoch, one panel for each curve there is; curves map a name to (epoch, value) pairs.

    `model` names the classifier, `beside` the baseline. The baseline has no alignment curve, nor has a vanilla classifier.
    `kept` are the epochs whose weights were kept, by these names, where they were chosen on validation images.
    """
    names = [name for name in PANELS if name in classifier or name in baseline]
    with style():
        rows = -(-len(names) // PANELS_IN_A_ROW)
        columns = -(-len(names) // rows)
        figure = Figure(figsize=(3.6 * columns + 0.4, 3.3 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        panels = panels[: len(names)]
        for axes, name in zip(panels, names, strict=True):
            _draw(axes, baseline.get(name, []), beside, BASELINE_COLOUR, "--")
            _draw(axes, classifier.get(name, []), model, MODEL_COLOUR, "-")
            axes.set_title(PANELS[name], pad=8)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.set_ylim(bottom=0)
            validation = name.startswith(VALIDATION)
            for who, epoch in (kept or {}).items() if validation else ():
                axes.axvline(epoch, color=MODEL_COLOUR if who == model else BASELINE_COLOUR, linewidth=1, linestyle=":")
            if name == "accuracy" or validation:
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            tidy(axes)
        figure.suptitle("Training curves", **TITLE)
        handles, names_shown = panels[0].get_legend_handles_labels()
        figure.legend(handles, names_shown, **OUTSIDE_LEGEND)
        pad(figure)
    return figure


def _draw(axes: Axes, curve: list[tuple[int, float]], name: str, colour: str, line: str) -> None:
    if curve:
        epochs, values = zip(*curve, strict=True)
        marker = "o" if len(curve) <= FEW_EPOCHS else ""
        axes.plot(epochs, values, color=colour, linestyle=line, linewidth=2, marker=marker, markersize=4, label=name)

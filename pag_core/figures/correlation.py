"""Both PAG scores against robustness, over models of many kinds: does alignment go along with robustness?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import spearmanr

from pag_core.evaluation.attacks import norm_and_radius, norm_label
from pag_core.figures.model_marks import MARKER_SIZE, Kind, fills, legend_marks
from pag_core.figures.palette import LABEL_SIZE, MUTED_COLOUR, OUTSIDE_LEGEND, SMALL_SIZE, TITLE, pad, style, tidy

# ranks of fewer say nothing
FEWEST_MODELS = 3


@dataclass(frozen=True)
class ScoredModel:
    """A model with its PAG scores (mean cosine; fraction that the judge sees) and its accuracy under attack (fraction)."""

    kind: Kind
    cosine: float
    judged: float
    robust: float


MEASURES: dict[str, Callable[[ScoredModel], float]] = {
    "cosine": lambda model: model.cosine,
    "judged": lambda model: model.judged,
}


def rank_correlation(models: Sequence[ScoredModel], measure: str) -> float | None:
    """Spearman's rho of a measure (`cosine`, `judged`) with robustness; None where ranks of these models say nothing."""
    scores, robust = [MEASURES[measure](model) for model in models], [model.robust for model in models]
    if len(models) < FEWEST_MODELS or len(set(scores)) == 1 or len(set(robust)) == 1:
        return None
    return float(spearmanr(scores, robust).statistic)


def correlations(models: Sequence[ScoredModel], measure: str) -> list[str]:
    """Spearman's rho in words: over all models, and over those trained with neither SBG nor attacked images."""
    others = [model for model in models if model.kind.meets_neither]
    lines = []
    for chosen, words in ((models, "all"), (others, "without SBG, AT and TRADES")):
        rho = rank_correlation(chosen, measure)
        lines.append(f"rho {'undefined' if rho is None else f'{rho:.2f}'}, {words} ({len(chosen)} models)")
    return lines


def correlation(models: Sequence[ScoredModel], *, setting: str, reference: str) -> Figure:
    """Accuracy under AutoAttack at `setting` (`NORM RADIUS`) against each PAG score, a mark for each model.

    `reference` names the target gradients of the cosine. Spearman's rho is written above each panel.
    """
    norm, radius = norm_and_radius(setting)
    filled = fills(model.kind for model in models)
    with style():
        figure = Figure(figsize=(10.4, 5.8), layout="constrained")
        panels = figure.subplots(1, len(MEASURES), sharey=True)
        for axes, (name, measure) in zip(panels, MEASURES.items(), strict=True):
            for model in models:
                axes.plot(
                    measure(model), model.robust, color=model.kind.colour, marker=model.kind.marker, markersize=MARKER_SIZE,
                    fillstyle=filled[model.kind], linestyle="", clip_on=False, zorder=3, alpha=0.85,
                )  # fmt: skip
            axes.set_title("\n".join(correlations(models, name)), fontsize=LABEL_SIZE, loc="left", pad=10)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
            tidy(axes)
        panels[0].set_xlabel(f"mean cosine with held-out target gradients: {reference}")
        panels[1].set_xlabel("adversarial examples in which the judge sees the target class")
        panels[1].xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        panels[0].set_ylabel(f"accuracy under AutoAttack, {norm_label(norm)} {radius}")
        panels[0].set_ylim(bottom=0)
        figure.suptitle("Alignment of gradients against robustness", **TITLE)
        legend = figure.legend(
            handles=legend_marks(model.kind for model in models),
            title="each mark is a model of one seed; rho is Spearman's",
            **{**OUTSIDE_LEGEND, "ncols": 5, "handlelength": 1.2},
        )
        legend.get_title().set(fontsize=SMALL_SIZE, color=MUTED_COLOUR)
        pad(figure)
    return figure

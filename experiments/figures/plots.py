"""Plots over the runs of experiments: both PAG scores against robustness, and accuracy against radius. With their captions."""

from dataclasses import dataclass

import typer
from matplotlib.figure import Figure

from experiments.figures.models import Finished, Model, different_models, models_of
from pag_core.evaluation.attacks import settings_by_norm
from pag_core.figures.correlation import ScoredModel, correlation, correlations
from pag_core.figures.radius_curves import CLEAN, RadiusCurve, radius_curves
from pag_core.gradients.sources import SOURCES

MEANS = "class means"


@dataclass(frozen=True)
class Drawn:
    """A figure, and what its caption says, sentence by sentence."""

    figure: Figure
    caption: list[str]


def draw_correlation(several: list[Finished], setting: str | None) -> Drawn:
    """PAG scores against accuracy under AutoAttack at `setting`, or at the first of L2 that the runs have.

    The cosine is with the gradients of `pag_score.reference` where all runs name the same, else with class means.
    Raises BadParameter where no run has what is drawn, or not all have it.
    """
    models = different_models(several)
    _require_some(models)
    chosen = setting or _first_setting(models[0])
    for model in models:
        if chosen not in model.measured["autoattack"][model.who]:
            raise typer.BadParameter(
                f"{model.run} was not attacked at {chosen}; its settings are {', '.join(_settings(model))}",
                param_hint="--setting",
            )
    references = {model.params.pag_score.reference for model in models}
    reference = references.pop() if len(references) == 1 else "none"
    compared = MEANS if reference == "none" else reference
    scored = [
        ScoredModel(
            model.kind,
            cosine=model.measured["details/pag_score"][model.who][compared],
            judged=model.measured["details/pag_score"]["judged"][model.who],
            robust=model.measured["autoattack"][model.who][chosen],
        )
        for model in models
    ]
    title = MEANS if reference == "none" else SOURCES[reference].title
    scores = [model.measured["details/pag_score"] for model in models]
    adversarial = {f"{score['judged']['attack']}, {score['judged']['steps']} steps" for score in scores}
    accuracies = [100 * score["judged"]["judge"]["accuracy"] for score in scores]
    caption = [
        f"Accuracy under AutoAttack ({chosen}) against both PAG scores; each mark is a model of one seed.",
        _data(models),
        f"AutoAttack: {_counts(model.measured['autoattack']['images'] for model in models)} test images.",
        f"Cosine with {title}: {_counts(score['images'] for score in scores)} test images, all classes.",
        f"Judge: {_counts(score['judged']['images'] for score in scores)} test images, attacked towards every other class "
        f"({'; '.join(sorted(adversarial))}); its own accuracy is {min(accuracies):.1f} to {max(accuracies):.1f} %.",
        *(
            f"Spearman's rank correlation of {words} with robustness: {'; '.join(correlations(scored, measure))}."
            for measure, words in (("cosine", "the cosine"), ("judged", "what the judge sees"))
        ),
    ]
    return Drawn(correlation(scored, setting=chosen, reference=title), caption)


def draw_curves(several: list[Finished]) -> Drawn:
    """Accuracy under PGD against radius of every row, from the checks against masked gradients."""
    curves, shown = [], []
    for finished in several:
        for row in finished.experiment.rows:
            label = row.label if len(several) == 1 else f"{finished.experiment.name}: {row.label}"
            if models := models_of(finished, row):
                curves.append(RadiusCurve(label, models[0].kind, _accuracies(models)))
                shown += models
    _require_some(shown)
    details = [model.measured["details/masking"] for model in shown]
    (steps, *others) = {found["pgd_steps"] for found in details}
    if others:
        raise typer.BadParameter("the runs differ in masking.steps; draw them in figures of their own")
    caption = [
        f"Accuracy under untargeted PGD with {steps} steps from a random start, against its radius.",
        _data(shown),
        f"{_counts(found['images'] for found in details)} test images. A line is the mean over seeds, a band their range.",
    ]
    return Drawn(radius_curves(curves, steps=steps), caption)


def _accuracies(models: list[Model]) -> dict[str, tuple[float, ...]]:
    """Of the seeds of a row, by `clean` and setting."""
    found = [(model.measured["details/masking"], model.who) for model in models]
    clean = {CLEAN: tuple(details["clean"][who] for details, who in found)}
    curve = found[0][0]["curve"][found[0][1]]
    return clean | {name: tuple(details["curve"][who][name] for details, who in found) for name in curve}


def _require_some(models: list[Model]) -> None:
    if not models:
        raise typer.BadParameter("none of the runs has finished; run the experiments first (experiments/run.py)")


def _settings(model: Model) -> list[str]:
    attacked = [name for name in model.measured["autoattack"][model.who] if name != CLEAN]
    return [name for names in settings_by_norm(attacked).values() for name in names]


def _first_setting(model: Model) -> str:
    found = _settings(model)
    return next((name for name in found if name.startswith("L2 ")), found[0])


def _data(models: list[Model]) -> str:
    datasets = sorted({model.params.dataset for model in models})
    archs = sorted({model.params.arch for model in models})
    seeds = sorted({model.params.seed for model in models})
    return (
        f"{', '.join(datasets)}; {', '.join(archs)}; {len(models)} models; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )


def _counts(images: object) -> str:
    return " or ".join(map(str, sorted(set(images))))  # type: ignore[call-overload]

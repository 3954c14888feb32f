"""What choices are made by: clean accuracy, and that under a short APGD, on the validation split."""

from statistics import fmean

from torch import nn

from pag_core.datasets.prepared import Split
from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.preconditions import batches_of, correct
from pag_core.params.measurements import ValidationParams

APGD_STEPS = 20


def validated(
    classifier: nn.Module, validation: Split, params: ValidationParams, *, classes: int, seed: int
) -> tuple[float, dict[str, float]]:
    """The accuracy (fraction) on all images of `validation`, and on its first ones under APGD by `NORM RADIUS`.

    Raises EvaluationRefused for a model that must not be evaluated, ParamsError where there are not so many images.
    """
    attacked = validation.first(params.images, "validation.images")
    proxy = apgd_accuracy(
        classifier,
        validation.pixels(attacked),
        validation.labels[attacked],
        radii=params.radii,
        classes=classes,
        steps=APGD_STEPS,
        seed=seed,
        batch_size=params.batch_size,
    )
    hits = [
        correct(classifier, validation.pixels(rows), validation.labels[rows], batch_size=params.batch_size)
        for rows in batches_of(len(validation), params.batch_size)
    ]
    return sum(int(batch.sum()) for batch in hits) / len(validation), proxy


def validation_row(clean: float, proxy: dict[str, float]) -> dict[str, float]:
    """What `validated` found by the criteria of `train.best_by`: clean, robust, and the mean over the radii of each norm."""
    norms = {setting.split()[0] for setting in proxy}
    means = {norm: fmean(proxy[setting] for setting in proxy if setting.split()[0] == norm) for norm in sorted(norms)}
    return {"clean": clean, "robust": fmean(proxy.values()), **means}

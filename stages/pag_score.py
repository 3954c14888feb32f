"""Score how perceptually aligned the input-gradients of classifier and baseline are, in two ways."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from typing import Any

import torch
from torch import nn

from pag_core.classifiers.building import load_classifier
from pag_core.datasets.counts import count
from pag_core.datasets.prepared import Dataset, Split, read_dataset
from pag_core.evaluation.judge import Judge, judged, judged_clean, trained_judge
from pag_core.evaluation.pag_score import pag_score, require_held_gradients
from pag_core.gradient_store.store import GradientStore, RepresentativeGradients, TargetGradients
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.params.radii import radius_value
from pag_core.params.sections import Params
from pag_core.pipeline.origins import require_of_now
from pag_core.pipeline.paths import classifier_path, dataset_path, gradients_path, measured_path, write_metrics
from pag_core.pipeline.saved_network import SavedNetwork
from pag_core.pipeline.stage import OpenStage, run, stage

MEANS = "class means"
READS = ("dataset", "source", "seed", "pag_score", "gradient_store.held_out_images", "figures.targeted_steps")


def _targets(
    stores: dict[str, GradientStore], dataset: Dataset, test: Split, device: torch.device
) -> dict[str, TargetGradients]:
    """Class means, and those of `stores`."""
    means = class_mean_representatives(dataset.splits["train"], dataset.classes, factor=1.0).to(device)
    return {MEANS: RepresentativeGradients(means, test)} | {
        source: store.gradients(dataset, "test", device) for source, store in stores.items()
    }


def _provenance(
    opened: OpenStage, dataset: Dataset, stores: dict[str, GradientStore], networks: dict[str, SavedNetwork]
) -> dict[str, Any]:
    """The record of the scores; raises ArtifactError if the classifier was trained with another store than that of now."""
    params = opened.params
    inputs = {"dataset": dataset.fingerprint} | {who: saved.fingerprint for who, saved in networks.items()}
    for what, source in (("reference store", params.pag_score.reference), ("gradient store", params.source)):
        if source != "none":
            inputs[what] = stores[source].manifest["checksum"]
    if params.source != "none":
        own = {"gradient store": inputs["gradient store"]}
        trained = networks["classifier"].card["provenance"]
        remedy = "run python stages/train.py again"
        require_of_now(classifier_path("classifier"), trained, inputs=own, remedy=remedy)
    return opened.provenance(inputs=inputs)


def _judged(
    judge: Judge, classifier: nn.Module, dataset: Dataset, images: torch.Tensor, labels: torch.Tensor, params: Params
) -> float:
    ((norm, radius),) = params.pag_score.judged_radius.items()
    return judged(
        judge,
        classifier,
        images,
        labels,
        classes=dataset.classes,
        norm=norm,
        radius=radius_value(radius),
        steps=params.figures.targeted_steps,
        batch_size=params.pag_score.batch_size,
    )


def main() -> None:
    """Write metrics/pag_score.json: the score against the own source, and how often a judge sees the target class.

    Its details have the scores against a chosen reference and class means too, and how good the judge is.
    """
    with stage("pag_score", reads=READS, memory="pag_score.batch_size") as opened:
        dataset = read_dataset(dataset_path(opened.params.dataset))
        params, device = count(opened, dataset), opened.device
        test, train = dataset.splits["test"].to(device), dataset.splits["train"]
        require_held_gradients(params)
        sources = {params.source, params.pag_score.reference} - {"none"}
        stores: dict[str, GradientStore] = {source: GradientStore(gradients_path(source)) for source in sources}
        targets = _targets(stores, dataset, test, device)
        loaded = {
            who: load_classifier(measured_path(who, params.classifier_checkpoint), dataset, device)
            for who in ("classifier", "baseline")
        }
        record = _provenance(opened, dataset, stores, {who: saved for who, (_, saved) in loaded.items()})
        images = test.pixels(test.first(params.pag_score.images, "pag_score.images"))
        judged_rows = test.first(params.pag_score.judged_images, "pag_score.judged_images")
        shown, labels = test.pixels(judged_rows), test.labels[judged_rows]
        judge = trained_judge(train, test, class_names=dataset.class_names, images=params.pag_score.judge_images)
        size = params.pag_score.batch_size
        scores, seen = {}, {}
        for who, (classifier, _) in zip(("model", "baseline"), loaded.values(), strict=True):
            scores[who] = {
                source: pag_score(classifier, images, gradients, classes=dataset.classes, batch_size=size)
                for source, gradients in targets.items()
            }
            seen[who] = _judged(judge, classifier, dataset, shown, labels, params)
        ((norm, radius),) = params.pag_score.judged_radius.items()
        own = MEANS if params.source == "none" else params.source
        headline = {
            "PAG": scores["model"][own],
            "PAG of baseline": scores["baseline"][own],
            "judged": seen["model"],
            "judged of baseline": seen["baseline"],
        }
        details = {
            "images": len(images),
            **scores,
            "judged": {
                "images": len(shown),
                "attack": f"{norm} {radius}",
                "steps": params.figures.targeted_steps,
                "judge": {"accuracy": judge.accuracy, "training_images": judge.trained_on, "test_images": judge.tested},
                "clean_images": judged_clean(judge, shown, labels, classes=dataset.classes),
                **seen,
            },
            "provenance": record,
        }
        write_metrics("pag_score", details, headline)


if __name__ == "__main__":
    run(main)

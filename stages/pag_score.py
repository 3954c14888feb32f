"""Score how well the input-gradients of classifier and baseline align with held-out target gradients."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import read_dataset
from pag_core.evaluation.pag_score import pag_score
from pag_core.gradient_store.store import RepresentativeGradients, TargetGradients, open_gradients
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.pipeline.places import classifier_place, dataset_place, gradients_place, write_metrics
from pag_core.pipeline.stage import run, stage

MEANS = "class means"


def main() -> None:
    """Write metrics/pag_score.json: scores against the own source; in its details a chosen reference and class means too."""
    with stage("pag_score") as opened:
        params, device = opened.params, opened.device
        dataset = read_dataset(dataset_place(params.dataset))
        test, train = dataset.splits["test"].to(device), dataset.splits["train"]
        means = class_mean_representatives(train, dataset.classes, factor=1.0).to(device)
        targets: dict[str, TargetGradients] = {MEANS: RepresentativeGradients(means, test)}
        for source in {params.source, params.pag_score.reference} - {"none"}:
            targets[source] = open_gradients(gradients_place(source), dataset, "test", device)
        rows = test.first(params.pag_score.images, "pag_score.images")
        # the store of sbg holds gradients of this many
        images = test.pixels(slice(0, min(rows.stop, params.gradient_store.held_out_images)))
        scores = {}
        for who, place in (("model", "classifier"), ("baseline", "baseline")):
            classifier, _ = load_classifier(classifier_place(place), dataset, device)
            scores[who] = {
                source: pag_score(classifier, images, gradients, classes=dataset.classes)
                for source, gradients in targets.items()
            }
        own = MEANS if params.source == "none" else params.source
        headline = {"PAG": scores["model"][own], "PAG of baseline": scores["baseline"][own]}
        write_metrics("pag_score", {"images": len(images), **scores}, headline)


if __name__ == "__main__":
    run(main)

"""Score how well the input-gradients of classifier and baseline align with held-out target gradients."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from pag_core.artifacts import write_json
from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import read_dataset
from pag_core.device import prepare_device
from pag_core.evaluation.alignment import pag_score
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.store import RepresentativeGradients, TargetGradients, open_gradients
from pag_core.params import load_params
from pag_core.stage import run, stage


def main() -> None:
    """Write metrics/alignment.json: scores against the own source, a chosen reference, and class means (always at hand)."""
    with stage("alignment"):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        test, train = dataset.splits["test"].to(device), dataset.splits["train"]
        means = class_mean_representatives(train, dataset.classes, factor=1.0).to(device)
        targets: dict[str, TargetGradients] = {"class means": RepresentativeGradients(means, test)}
        for source in {params.source, params.alignment.reference} - {"none"}:
            targets[source] = open_gradients(Path("data/gradients") / f"{source}.zarr", dataset, "test", device)
        rows = test.first(params.alignment.images, "alignment.images")
        # the store of sbg holds gradients of so many
        images = test.pixels(slice(0, min(rows.stop, params.gradient_store.held_out_images)))
        scores = {}
        for name, folder in (("model", "classifier"), ("baseline", "baseline")):
            classifier, _ = load_classifier(Path("data") / folder, dataset, device)
            scores[name] = {
                source: pag_score(classifier, images, gradients, classes=dataset.classes)
                for source, gradients in targets.items()
            }
        write_json(Path("metrics/alignment.json"), {"images": len(images), **scores})


if __name__ == "__main__":
    run(main)

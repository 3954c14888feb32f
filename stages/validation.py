"""Measure the classifier, or the baseline, on the validation split: parameters are chosen by these numbers."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from typing import Annotated

import typer

from pag_core.classifiers.building import load_classifier
from pag_core.datasets.counts import count
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ArtifactError
from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.preconditions import batches_of, correct
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.paths import DATA, dataset_path, measured_path, write_metrics
from pag_core.pipeline.stage import run, stage

APGD_STEPS = 20


def main(baseline: Annotated[bool, typer.Option("--baseline", help="Measure the baseline.")] = False) -> None:
    """Write metrics/training.json: clean accuracy, and that under a short APGD; or data/baseline_training.json.

    The details have the last epoch of the training as well, of a classifier that was trained here.
    """
    who = "baseline" if baseline else "classifier"
    reads = ("dataset", "seed", "validation")
    with stage(f"validation_{who}", reads=reads, memory="validation.batch_size") as opened:
        dataset = read_dataset(dataset_path(opened.params.dataset))
        params, size = count(opened, dataset), opened.params.validation.batch_size
        validation = dataset.splits["validation"].to(opened.device)
        attacked = validation.first(params.validation.images, "validation.images")
        place = measured_path(who, params.classifier_checkpoint)
        classifier, saved = load_classifier(place, dataset, opened.device)
        if not {"training", "imported"} & saved.card.keys():
            command = "stages/train.py --baseline" if baseline else "stages/train.py"
            raise ArtifactError(
                f"{place} does not say how its training ended, as of an earlier version; run {command} again"
            )
        proxy = apgd_accuracy(
            classifier,
            validation.pixels(attacked),
            validation.labels[attacked],
            radii=params.validation.radii,
            classes=dataset.classes,
            steps=APGD_STEPS,
            seed=params.seed,
            batch_size=size,
        )
        hits = [
            correct(classifier, validation.pixels(rows), validation.labels[rows], batch_size=size)
            for rows in batches_of(len(validation), size)
        ]
        clean = sum(int(batch.sum()) for batch in hits) / len(validation)
        found = {"clean": clean, f"APGD-{APGD_STEPS} on {attacked.stop} images (fast proxy)": proxy}
        record = opened.provenance(inputs={"dataset": dataset.fingerprint, who: saved.fingerprint})
        details = {"train": saved.card.get("training", {}), "validation": found, "provenance": record}
        if baseline:
            write_json(DATA / "baseline_training.json", details)
        else:
            write_metrics("training", details, {"validation": {"clean": clean}, "proxy": proxy})


if __name__ == "__main__":
    run(main)

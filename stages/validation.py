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
from pag_core.evaluation.validation import APGD_STEPS, validated
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.curves import VALIDATION
from pag_core.pipeline.paths import DATA, dataset_path, measured_path, write_metrics
from pag_core.pipeline.stage import run, stage


def main(baseline: Annotated[bool, typer.Option("--baseline", help="Measure the baseline.")] = False) -> None:
    """Write metrics/training.json: clean accuracy, and that under a short APGD; or data/baseline_training.json.

    The details have the last epoch of the training as well, of a classifier that was trained here.
    """
    who = "baseline" if baseline else "classifier"
    reads = ("dataset", "seed", "validation")
    with stage(f"validation_{who}", reads=reads, memory="validation.batch_size") as opened:
        dataset = read_dataset(dataset_path(opened.params.dataset))
        params = count(opened, dataset)
        place = measured_path(who, params.classifier_checkpoint)
        classifier, saved = load_classifier(place, dataset, opened.device)
        if not {"training", "imported"} & saved.card.keys():
            command = "stages/train.py --baseline" if baseline else "stages/train.py"
            raise ArtifactError(
                f"{place} does not say how its training ended, as of an earlier version; run {command} again"
            )
        clean, proxy = validated(
            classifier,
            dataset.splits["validation"].to(opened.device),
            params.validation,
            classes=dataset.classes,
            seed=params.seed,
        )
        found = {"clean": clean, f"APGD-{APGD_STEPS} on {params.validation.images} images (fast proxy)": proxy}
        record = opened.provenance(inputs={"dataset": dataset.fingerprint, who: saved.fingerprint})
        # without what was validated between epochs, of which this is the last word
        training = {
            key: value for key, value in saved.card.get("training", {}).items() if not key.startswith(VALIDATION)
        }
        kept = {"kept": saved.card["kept"]} if "kept" in saved.card else {}
        details = {"train": training, **kept, "validation": found, "provenance": record}
        if baseline:
            write_json(DATA / "baseline_training.json", details)
        else:
            headline = {"validation": {"clean": clean}, "proxy": proxy}
            write_metrics("training", details, headline | ({"kept_epoch": saved.card["kept"]["epoch"]} if kept else {}))


if __name__ == "__main__":
    run(main)

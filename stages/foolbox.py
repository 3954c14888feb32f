"""Attack the classifier, or the baseline, with the seven Foolbox attacks of Table 6."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

import json
from typing import Annotated

import typer

from pag_core.artifacts import write_json
from pag_core.checkpoint import run_folder
from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import read_dataset
from pag_core.device import prepare_device
from pag_core.evaluation.foolbox_suite import run_foolbox
from pag_core.params import load_params
from pag_core.processes import process_count
from pag_core.stage import run, stage

BASELINE = Path("data/attacks/baseline_foolbox.json")


def main(baseline: Annotated[bool, typer.Option("--baseline", help="Attack the vanilla baseline.")] = False) -> None:
    """Write metrics/foolbox.json, which includes the baseline's results, or those alone with --baseline."""
    who = "baseline" if baseline else "classifier"
    with stage(f"foolbox_{who}", shared=True):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        classifier, saved = load_classifier(Path("data") / who, dataset, device)
        test = dataset.splits["test"].to(device)
        rows = test.first(params.foolbox.images, "foolbox.images")
        inputs = {"dataset": dataset.fingerprint, "classifier": saved.fingerprint}
        processes = process_count(params.processes, device)
        identity = {"params": params.section("foolbox"), "seed": params.seed, "processes": processes, **inputs}
        with run_folder(f"foolbox_{who}", identity, device) as folder:
            result = run_foolbox(
                classifier,
                test.pixels(rows),
                test.labels[rows],
                params=params.foolbox,
                seed=params.seed,
                folder=folder,
                processes=processes,
                who=who,
            )
            if baseline:
                write_json(BASELINE, result)
            else:
                metrics = {
                    "images": len(test.labels[rows]),
                    "model": result,
                    "baseline": json.loads(BASELINE.read_text(encoding="utf-8")),
                }
                write_json(Path("metrics/foolbox.json"), metrics)


if __name__ == "__main__":
    run(main)

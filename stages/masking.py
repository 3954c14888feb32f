"""Check that the robustness is not an illusion of masked gradients."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from pag_core.artifacts import write_json
from pag_core.checkpoint import run_folder
from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import read_dataset
from pag_core.device import prepare_device
from pag_core.evaluation.masking import masking_checks
from pag_core.params import load_params
from pag_core.processes import process_count
from pag_core.stage import run, stage


def main() -> None:
    """Write metrics/masking.json."""
    with stage("masking", shared=True):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        (classifier, saved), (baseline, saved_baseline) = (
            load_classifier(Path("data") / who, dataset, device) for who in ("classifier", "baseline")
        )
        test = dataset.splits["test"].to(device)
        rows = test.first(params.masking.images, "masking.images")
        inputs = {"dataset": dataset.fingerprint, "model": saved.fingerprint, "baseline": saved_baseline.fingerprint}
        processes = process_count(params.processes, device)
        identity = {"params": params.section("masking"), "seed": params.seed, "processes": processes, **inputs}
        with run_folder("masking", identity, device) as folder:
            result = masking_checks(
                classifier,
                baseline,
                test.pixels(rows),
                test.labels[rows],
                classes=dataset.classes,
                params=params.masking,
                seed=params.seed,
                folder=folder,
                processes=processes,
            )
            write_json(Path("metrics/masking.json"), result)
        for name, holds in result["verdict"].items():
            if not holds:
                print(f"Sign of gradient masking: {name} does not hold; see metrics/masking.json", flush=True)


if __name__ == "__main__":
    run(main)

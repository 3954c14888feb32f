"""Check that the robustness is not an illusion of masked gradients."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.evaluation.masking import masking_checks
from pag_core.evaluation.subject import open_subject
from pag_core.pipeline.paths import write_metrics
from pag_core.pipeline.stage import run, stage


def main() -> None:
    """Write metrics/masking.json, the number of signs of masking, and the details beside it."""
    reads = ("dataset", "seed", "masking")
    with (
        stage("masking", reads=reads, shared=True, memory="masking.batch_size") as opened,
        open_subject(opened, "masking", ("classifier", "baseline")) as subject,
    ):
        params = opened.params
        found = masking_checks(
            subject.networks["classifier"],
            subject.networks["baseline"],
            subject.images,
            subject.labels,
            classes=subject.classes,
            params=params.masking,
            seed=params.seed,
            folder=subject.folder,
            processes=subject.processes,
        )
        signs = [check for check, holds in found["verdict"].items() if not holds]
        details = {**found, "provenance": subject.provenance}
        write_metrics("masking", details, {"signs_of_masking": len(signs)})
        for check in signs:
            print(f"Sign of gradient masking: {check} does not hold; see metrics/details/masking.json", flush=True)


if __name__ == "__main__":
    run(main)

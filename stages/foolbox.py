"""Attack the classifier, or the baseline, with the seven Foolbox attacks of Table 6."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.evaluation.foolbox_suite import headline, run_foolbox
from pag_core.evaluation.subject import BaselineOption, keep_result, open_subject
from pag_core.pipeline.stage import run, stage


def main(baseline: BaselineOption = False) -> None:
    """Write metrics/foolbox.json, which includes the baseline's results, or those alone with --baseline."""
    who = "baseline" if baseline else "classifier"
    reads = ("dataset", "seed", "foolbox")
    with (
        stage(f"foolbox_{who}", reads=reads, shared=True, memory="foolbox.batch_size") as opened,
        open_subject(opened, "foolbox", (who,)) as subject,
    ):
        params = opened.params
        found = run_foolbox(
            subject.networks[who],
            subject.images,
            subject.labels,
            params=params.foolbox,
            seed=params.seed,
            folder=subject.folder,
            processes=subject.processes,
            who=who,
        )
        head = {"images": len(subject.labels)}
        keep_result("foolbox", who, found, provenance=subject.provenance, head=head, headline=headline)


if __name__ == "__main__":
    run(main)

"""Attack the classifier, or the baseline, with AutoAttack."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.evaluation.autoattack import attack_name, headline, run_autoattack
from pag_core.evaluation.subject import BaselineOption, keep_result, open_subject
from pag_core.pipeline.stage import run, stage


def main(baseline: BaselineOption = False) -> None:
    """Write metrics/autoattack.json, which includes the baseline's results, or those alone with --baseline."""
    who = "baseline" if baseline else "classifier"
    reads = ("dataset", "seed", "autoattack")
    with (
        stage(f"autoattack_{who}", reads=reads, shared=True, memory="autoattack.batch_size") as opened,
        open_subject(opened, "autoattack", (who,)) as subject,
    ):
        params = opened.params
        found = run_autoattack(
            subject.networks[who],
            subject.images,
            subject.labels,
            classes=subject.classes,
            params=params.autoattack,
            seed=params.seed,
            folder=subject.folder,
            processes=subject.processes,
            who=who,
        )
        head = {"attack": attack_name(params.autoattack.version, subject.classes), "images": len(subject.labels)}
        keep_result("autoattack", who, found, provenance=subject.provenance, head=head, headline=headline)


if __name__ == "__main__":
    run(main)

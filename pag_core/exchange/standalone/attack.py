"""Attack the exported classifier of this folder again with AutoAttack, as measured.json says, and compare the counts.

Needs torch, safetensors, pyautoattack, and numpy, which pyautoattack does not ask for itself. Ends with 1 if a count differs
from the measured one.
"""

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
from pyautoattack.autoattack import AutoAttack
from torch import nn

from pag_core.exchange.standalone.loading import attacked_images, load

FOLDER = Path(__file__).resolve().parent


class Counts(logging.Handler):
    """The images left at first and after each attack: AutoAttack reports them in its log alone, as a percentage."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.found: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"(initial accuracy|robust accuracy after ([A-Z-]+)): ([0-9.]+)%", record.getMessage()):
            self.found[found[2].lower() if found[2] else "clean"] = round(float(found[3]) / 100 * self.images)


def attack_shard(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    shard: dict[str, Any],
    *,
    classes: int,
    version: str,
    batch: int,
) -> dict[str, int]:
    """Images [N, C, H, W] that are classified as their labels at first (`clean`) and after each attack of the sequence."""
    attack = AutoAttack(
        classifier,
        norm=shard["norm"],
        eps=shard["radius"],
        seed=shard["seed"],
        device=images.device,
        version=version,
    )
    if classes < 10:
        # both versions assume ten classes and would index past the end with fewer
        attack.fab.n_target_classes = classes - 1
        attack.apgd_targeted.n_target_classes = min(classes - 1, attack.apgd_targeted.n_target_classes)
    # the loss of APGD-T needs the third and fourth largest logits, that of APGD-DLR the third
    skipped = [name for name, needed in (("apgd-t", 4), ("apgd-dlr", 3)) if classes < needed]
    attack.attacks_to_run = [name for name in attack.attacks_to_run if name not in skipped]
    counter, logger = Counts(len(images)), logging.getLogger("auto-attack")
    logger.addHandler(counter)
    logger.setLevel(logging.DEBUG)
    attack.run_standard_evaluation(images, labels, batch_size=batch)
    logger.removeHandler(counter)
    # once no image is left the library skips the other attacks
    return {name: counter.found.get(name, 0) for name in ("clean", *attack.attacks_to_run)}


def prepare(device: torch.device, threads: int | None) -> None:
    """Make sums run in the order in which they ran when the classifier was measured, as far as torch can."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def main() -> None:
    """Attack every shard, print each count beside the measured one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; counts can depend on it")
    device = torch.device(parser.parse_args().device)
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))["autoattack"]
    prepare(device, measured["threads"])
    classifier, (images, labels) = load(FOLDER, device), attacked_images(FOLDER, device)
    equal = True
    for setting, shards in measured["shards"].items():
        total: dict[str, int] = {}
        for shard in shards:
            rows = slice(shard["start"], shard["stop"])
            found = attack_shard(
                classifier, images[rows], labels[rows], shard,
                classes=len(card["class_names"]), version=measured["version"], batch=measured["batch_size"],
            )  # fmt: skip
            total = {name: total.get(name, 0) + count for name, count in found.items()}
        expected = measured["counts"][setting]
        equal = equal and total == expected
        for name, count in total.items():
            print(f"{setting}, {name}: {count} of {len(labels)} images, measured {expected[name]}", flush=True)
    if not equal:
        record = measured["provenance"]
        versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "pyautoattack"))
        print(f"The counts differ. They were measured on {record['device']}, with {versions}.")
    sys.exit(not equal)


if __name__ == "__main__":
    main()

"""One process against two: the real stages of distillation and of AutoAttack on digits, each as its command.

A command's time is its start-up and its work; the time that a stage itself writes down has the work, and the start-up of
further processes only. Outputs must be the same bytes.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.interleaved import Rounds
from benchmarks.measurement import TIMES_AS_FAST, Measurement, report
from benchmarks.workplace import Workplace
from pag_core.compute.processes import usable_cores
from pag_core.pipeline.stage import run

COUNTS = (1, 2)
# a small experiment on digits whose models are made quickly; units of work are small, so that two processes can end together
BASE: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "prepare.images_per_class": 60,
    "diffusion.steps": 120,
    "gradient_store.images_per_shard": 16,
    "gradient_store.images_per_chunk": 16,
    "gradient_store.held_out_images": 16,
    "train.epochs": 8,
    "validation.images": 5,
    "autoattack.images_per_shard": 1,
}


@dataclass(frozen=True)
class Work:
    """A stage of which the parameter `key` sets the `amount` of work, and what it writes."""

    command: tuple[str, ...]
    key: str
    amount: int
    written: str
    described: str


WORKS = {
    "distillation": Work(
        ("sbg",), "sbg.draws", 12, "data/gradients/sbg.zarr", "noise draws of 526 digits"
    ),
    "attack": Work(
        ("autoattack", "--baseline"), "autoattack.images", 60, "data/attacks/baseline_autoattack.json",
        "digits under AutoAttack",
    ),
}  # fmt: skip


# for a trial: no image stands long, and few are trained on
TRIAL: dict[str, Any] = {"autoattack.radii": {"Linf": [0.6]}, "train.epochs": 1}


def prepared(path: Path, values: dict[str, Any]) -> Workplace:
    """A workplace with prepared digits, a diffusion model and a vanilla baseline; `values` are parameters beside BASE."""
    place = Workplace(path, {**BASE, **values, "processes": 1})
    place.stage("prepare")
    place.stage("diffusion")
    place.stage("train", "--baseline")
    return place


def timed_runs(place: Workplace, work: Work, rounds: int) -> tuple[Rounds, Rounds]:
    """Seconds of the stage by its number of processes, in rounds: of the whole command, and by the stage's own timing.

    Raises RuntimeError where the number of processes changes what is written.
    """
    whole: dict[str, list[float]] = {str(count): [] for count in COUNTS}
    own: dict[str, list[float]] = {str(count): [] for count in COUNTS}
    expected: dict[str, bytes] | None = None
    for number in range(rounds):
        for count in COUNTS if number % 2 == 0 else COUNTS[::-1]:
            place.set({"processes": count, work.key: work.amount})
            place.remove(work.written)
            cost = place.stage(*work.command)
            whole[str(count)].append(cost.whole)
            own[str(count)].append(cost.seconds)
            contents = place.contents(work.written)
            if expected is not None and contents != expected:
                raise RuntimeError(f"{work.written} differs between {COUNTS} processes")
            expected = contents
    return Rounds(whole), Rounds(own)


def measure(works: dict[str, Work], rounds: int, values: dict[str, Any]) -> dict[str, Measurement]:
    """Two processes against one for each stage, without and with the start-up of Python and its libraries."""
    described = {name: f"one process, {work.amount} {work.described}, one thread each" for name, work in works.items()}
    if usable_cores() < max(COUNTS):
        reason = f"{max(COUNTS)} processes need as many cores, this one may use {usable_cores()}"
        return {
            f"{name}.{key}": Measurement(None, TIMES_AS_FAST, against, not_measured=reason)
            for name, against in described.items()
            for key in ("speedup", "speedup_with_start_up")
        }
    found: dict[str, Measurement] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = prepared(Path(folder), values)
        for name, work in works.items():
            whole, own = timed_runs(place, work, rounds)
            found[f"{name}.speedup"] = own.speedup("2", "1", f"{described[name]}, from the stage's own timing")
            found[f"{name}.speedup_with_start_up"] = whole.speedup("2", "1", f"{described[name]}, start-up included")
            found[f"{name}.seconds_of_one_process"] = Measurement(whole.median("1"), "s", None)
    return found


def main(
    device: Annotated[str, typer.Option(help="Only cpu: two processes on one GPU share what one has.")] = "cpu",
    rounds: Annotated[int, typer.Option(help="Runs of each stage with each number of processes.")] = 1,
    smallest: Annotated[bool, typer.Option("--smallest", help="As little work as there is: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare two processes with one for distillation and for AutoAttack, by the stages' own commands."""
    if smallest:
        found = measure({name: replace(work, amount=2) for name, work in WORKS.items()}, 1, TRIAL)
    else:
        found = measure(WORKS, rounds, {})
    report("processes", found, output, device="cpu", arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)

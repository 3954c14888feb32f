"""Every benchmark, one after the other and each in a process of its own: python -m benchmarks, or make bench."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measurement import header
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.stage import run

SUBJECTS = (
    "training_step",
    "adversarial_training",
    "gradient_store",
    "sparse_store",
    "feeding",
    "distillation",
    "processes",
)
RESULTS = Path(__file__).parent / "results"


def run_subject(subject: str, arguments: list[str]) -> dict[str, Any]:
    """Run one benchmark, which prints its measurements, and return what it wrote; raises SystemExit where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "measured.json"
        command = [sys.executable, "-m", f"benchmarks.{subject}", *arguments, "--output", str(output)]
        if subprocess.run(command, cwd=RESULTS.parents[1], check=False).returncode != 0:
            raise SystemExit(f"benchmarks: {subject} failed (its message is above); nothing was written")
        content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    smallest: Annotated[bool, typer.Option("--smallest", help="Every benchmark at its smallest: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where the results go; benchmarks/results/DEVICE.json.")] = None,
) -> None:
    """Run every benchmark and write all measurements into one file."""
    arguments = ["--device", device, *(["--smallest"] if smallest else [])]
    measurements: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for subject in SUBJECTS:
        start = time.perf_counter()
        measurements.update(run_subject(subject, arguments)["measurements"])
        seconds[subject] = round(time.perf_counter() - start, 1)
    command = " ".join(["python -m benchmarks", *arguments])
    place = output or RESULTS / ("smallest.json" if smallest else f"{device.replace(':', '')}.json")
    write_json(place, {"header": {**header(command, device), "seconds": seconds}, "measurements": measurements})
    print(f"{len(measurements)} measurements in {sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    run(main)

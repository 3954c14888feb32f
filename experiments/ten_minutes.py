"""What ten minutes of a GPU can show: its tests, a benchmark, and an experiment's stages one after the other.

    python experiments/ten_minutes.py --images FOLDER --output FOLDER

For a machine that is lent for so long: it needs neither DVC nor a network, each step has its own limit of time, and what is
done is in the output folder, a few small files, however it ends.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.description.experiment import read_experiment
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.stage import TIMINGS

DESCRIPTION = CHECKOUT / "experiments/cifar10_resnet18.yaml"
SECONDS_TO_SAVE = 10
LINES = 15  # of what a step said that are kept
# limits in seconds, which together are more than there is: a step that is fast leaves its rest to the others
CHECKS = {
    "tests": (["-m", "pytest", "-q", "-m", "gpu", str(CHECKOUT / "tests/gpu")], 60),
    "benchmark": (["-m", "benchmarks.training_step", "--device", "cuda", "--rounds", "2"], 60),
}
STAGES = {
    "prepare": (["prepare"], 60), "check": (["check"], 30), "diffusion": (["diffusion"], 200), "sbg": (["sbg"], 60),
    "train": (["train"], 180), "baseline": (["train", "--baseline"], 60),
    "baseline_autoattack": (["autoattack", "--baseline"], 60), "autoattack": (["autoattack"], 200),
    "validation": (["validation"], 30), "none": (["heuristic", "none"], 20), "pag_score": (["pag_score"], 60),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a step ended: `exit_code` None is a step for which there was no time; bytes are the peak of its host memory."""

    exit_code: int | None
    seconds: float
    peak_bytes: int
    said: list[str]


def ended(command: list[str], place: Path, log: Path, limit: float) -> Ended:
    """Run a step in the folder `place`, what it says in `log`; at its limit it is asked to save and end, then killed."""
    begun = time.monotonic()
    with log.open("w+b") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=place, stdout=file, stderr=subprocess.STDOUT)
        while not (waited := os.wait4(process.pid, os.WNOHANG))[0]:
            late = time.monotonic() - begun - limit
            if late > 0:
                os.kill(process.pid, signal.SIGKILL if late > SECONDS_TO_SAVE else signal.SIGTERM)
                time.sleep(1)
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(waited[1])
        file.seek(0)
        said = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return Ended(process.returncode, round(time.monotonic() - begun, 1), waited[2].ru_maxrss * 1024, said[-LINES:])


def results_of(place: Path) -> dict[str, Any]:
    """All metrics and timings that the stages have written so far."""
    files = sorted([*place.glob("metrics/**/*.json"), *(place / TIMINGS).glob("*.json")])
    return {str(file.relative_to(place)): json.loads(file.read_text(encoding="utf-8")) for file in files}


def main(
    images: Annotated[Path, typer.Option(help="An image folder: train and test, as folders or .tar.* files.")],
    output: Annotated[Path, typer.Option(help="Where params.yaml, steps.json and results.json go.")],
    size: Annotated[str, typer.Option(help="Which size of cifar10_resnet18.yaml.")] = "ten_minutes",
    classifier: Annotated[str, typer.Option(help="Which of its classifiers.")] = "sbg",
    change: Annotated[list[str] | None, typer.Option("--set", "-S", help="A parameter, as train.epochs=1.")] = None,
    seconds: Annotated[float, typer.Option(help="For all of it.")] = 570,
    checks: Annotated[bool, typer.Option(help="Begin with the GPU's tests and a benchmark.")] = True,
) -> None:
    """Run the steps, and keep after each how it ended; ends with 1 if one failed or had no time."""
    deadline = time.monotonic() + seconds - SECONDS_TO_SAVE
    experiment = read_experiment(DESCRIPTION, size, change or [], images)
    output.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Ended] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        params = written_yaml(experiment.params[classifier])
        for where in (place, output):
            (where / "params.yaml").write_text(params, encoding="utf-8")
        todo = {
            **(CHECKS if checks else {}),
            **{
                name: ([str(CHECKOUT / f"stages/{stage}.py"), *arguments], limit)
                for name, ([stage, *arguments], limit) in STAGES.items()
            },
        }
        for name, (command, limit) in todo.items():
            left = min(limit, deadline - time.monotonic())
            where = CHECKOUT if name in CHECKS else place
            steps[name] = (
                ended(command, where, place / "said.txt", left)
                if left > 0
                else Ended(None, 0.0, 0, ["no time was left"])
            )
            print(f"{name}: exit code {steps[name].exit_code} after {steps[name].seconds} s", flush=True)
            write_json(output / "steps.json", [{"step": step, **asdict(how)} for step, how in steps.items()])
            write_json(output / "results.json", results_of(place))
    sys.exit(int(any(how.exit_code != 0 for how in steps.values())))


if __name__ == "__main__":
    typer.run(main)

"""An experiment on a machine without DVC: the stages that dvc.yaml describes, each run once for equal inputs.

Every run of a stage has a folder of its own, named after all that its result depends on, with links to the outputs of the
stages before it. So classifiers share what is equal, and a stage that has finished is not run again.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.description import Experiment, Plain
from pag_core.pipeline.artifacts import digest, read_json, replacing_folder, write_json
from pag_core.pipeline.code_identity import CHECKOUT, code_fingerprint
from pag_core.pipeline.places import FIGURES

ENDED = "ended.json"
PARAMS = "params.yaml"


def value_at(params: Plain, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def described_stages(params: Plain) -> dict[str, Plain]:
    """The stages of both dvc.yaml files with the values of `params` filled in; one of a matrix stands for each value."""
    found: dict[str, Plain] = {}
    for file in ("dvc.yaml", "stages/gradients/dvc.yaml"):
        for name, stage in yaml.safe_load((CHECKOUT / file).read_text(encoding="utf-8"))["stages"].items():
            if name == "code":  # the fingerprints are taken here
                continue
            ((key, values),) = stage.get("matrix", {"": [""]}).items()
            for value in values:
                whole = yaml.safe_dump(stage).replace(f"${{item.{key}}}", value)
                text = re.sub(r"\$\{([\w.]+)\}", lambda match: str(value_at(params, match[1])), whole)
                found[f"{name}@{value}" if key else name] = yaml.safe_load(text)
    return found


def outputs_of(stage: Plain) -> list[str]:
    """The files and folders that a stage writes."""
    entries = [*stage.get("outs", []), *stage.get("metrics", [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


class ByHand:
    """Runs of stages below `work` with the parameters of one classifier."""

    def __init__(self, params: Plain, work: Path) -> None:
        self.params = params
        self.work = work.resolve()
        self.stages = described_stages(params)
        self.makers = {output: name for name, stage in self.stages.items() for output in outputs_of(stage)}
        self.folders: dict[str, Path] = {}

    def made(self, name: str) -> Path:
        """The folder in which the stage `name` has run, after all that it needs; ends the program where one fails."""
        if name not in self.folders:
            stage = self.stages[name]
            needed = {
                output: self.made(maker)
                for output, maker in self.makers.items()
                if any(output == path or output.startswith(f"{path}/") for path in stage["deps"])
            }
            self.folders[name] = self._run(name, stage, needed)
        return self.folders[name]

    def _run(self, name: str, stage: Plain, needed: dict[str, Path]) -> Path:
        _, script, *options = stage["cmd"].split()
        # an entry that is not a key is the file itself: all parameters
        tracked = {
            str(key): value_at(self.params, key) if isinstance(key, str) else self.params for key in stage["params"]
        }
        inputs = {path: folder.name for path, folder in needed.items()}
        identity = {
            "code": code_fingerprint(CHECKOUT / script),
            "options": options,
            "params": tracked,
            "inputs": inputs,
        }
        folder = self.work / f"{name}-{digest(identity)[:16]}"
        if (folder / ENDED).exists() and all((folder / path).exists() for path in outputs_of(stage)):
            print(f"{name}: done before", flush=True)
            return folder
        print(f"\n=== {name}: {stage['cmd']}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PARAMS).write_text(yaml.safe_dump(self.params, sort_keys=False), encoding="utf-8")
        for path, maker in needed.items():
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(maker / path)
        start = time.perf_counter()
        # checkpoints of all stages in one place, as under DVC
        environment = {**os.environ, "DVC_ROOT": str(self.work)}
        command = [sys.executable, str(CHECKOUT / script), *options]
        code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        if code:
            print(f"{name} ended with exit code {code}; the same command resumes from here", file=sys.stderr)
            sys.exit(code)
        write_json(folder / ENDED, {"seconds": round(time.perf_counter() - start, 1), "identity": identity})
        return folder


def run_by_hand(experiment: Experiment, work: Path) -> dict[str, Plain]:
    """Run the stages that the experiment wants of each classifier; returns each one's metrics/autoattack.json."""
    found = {}
    for classifier, params in experiment.params.items():
        runs = ByHand(params, work)
        folders = {stage: runs.made(stage) for stage in experiment.stages}
        found[classifier] = read_json(folders["autoattack"] / "metrics/autoattack.json")
        # as a whole, so that nothing of an earlier run with other parameters stays
        with replacing_folder(work / "results" / classifier) as place:
            gather(runs, place)
    return found


def gather(runs: ByHand, place: Path) -> None:
    """Copy into `place` what the stages say of a classifier: parameters, metrics, figures if wanted, and durations."""
    (place / PARAMS).write_text(yaml.safe_dump(runs.params, sort_keys=False), encoding="utf-8")
    for name, folder in runs.folders.items():
        for path in outputs_of(runs.stages[name]):
            if path.startswith("metrics/"):
                write_json(place / path, read_json(folder / path))
            elif path == str(FIGURES):
                shutil.copytree(folder / path, place / path)
    write_json(
        place / "seconds.json", {name: read_json(folder / ENDED)["seconds"] for name, folder in runs.folders.items()}
    )

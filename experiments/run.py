"""An experiment of several classifiers as one resumable command, without DVC: a machine needs only the Python packages.

    python experiments/run.py experiments/cifar10_resnet18.yaml --images FOLDER --work FOLDER --size small

Every step is a stage of the pipeline in a folder of its own below `--work`. A finished step is not run again as long as
its outputs are there, and the images, the parameters and code files that dvc.yaml names for its stage, and the steps
before it, are the same; a killed one goes on from its checkpoint. Nothing is removed that was there before.
"""

import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import typer
import yaml

from experiments.images import arrange_images
from pag_core.pipeline.artifacts import digest, file_digest, write_json

SMALL_FILES = ("metrics", "timings", "curves")


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline: its name in dvc.yaml, the folder it runs in, and the steps whose outputs it reads."""

    name: str
    stage: str
    folder: str
    after: tuple[str, ...]


def steps_of(classifiers: dict[str, Any]) -> list[Step]:
    """The steps in their order: what all share, then train, attack and score each classifier."""
    sources = sorted({chosen["source"] for chosen in classifiers.values()})
    steps = [
        Step("prepare", "prepare", "common", ()),
        Step("vanilla train", "baseline", "common", ("prepare",)),
        Step("vanilla autoattack", "baseline_autoattack", "common", ("vanilla train",)),
    ]
    if "sbg" in sources:
        steps.append(Step("diffusion", "diffusion", "common", ("prepare",)))
    for source in sources:
        steps.append(Step(source, source, "common", ("diffusion",) if source == "sbg" else ("prepare",)))
    for name, chosen in classifiers.items():
        train = f"{name} train"
        steps += [
            Step(train, "train", name, (chosen["source"],)),
            Step(f"{name} autoattack", "autoattack", name, (train, "vanilla autoattack")),
            Step(f"{name} alignment", "alignment", name, (train, "vanilla train")),
        ]
    return steps


def laid_over(params: dict[str, Any], *layers: dict[str, Any]) -> dict[str, Any]:
    """`params` with the values of `layers` in place of its own; a section keeps what a layer does not name."""
    merged = dict(params)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            # grids of radii are values, not sections
            merged[key] = laid_over(merged[key], value) if both and not key.endswith("radii") else value
    return merged


def stages() -> dict[str, dict[str, Any]]:
    """The stages that dvc.yaml and its companion describe."""
    described: dict[str, dict[str, Any]] = {}
    for file in (CHECKOUT / "dvc.yaml", CHECKOUT / "stages/gradients/dvc.yaml"):
        described |= yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
    return described


def value_at(params: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def filled(text: str, params: dict[str, Any]) -> str:
    """`text` of dvc.yaml with the values of the parameters that it names as ${key}."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(value_at(params, found[1])), text)


def outputs(stage: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """The files and folders that a stage writes, relative to where it runs."""
    named = [*stage.get("outs", []), *stage.get("metrics", [])]
    return [filled(next(iter(entry)) if isinstance(entry, dict) else entry, params) for entry in named]


def identity(stage: dict[str, Any], params: dict[str, Any], before: list[str], images: str) -> str:
    """A fingerprint of what a step's result depends on."""
    code = {name: file_digest(CHECKOUT / name) for name in stage["deps"] if name.endswith(".py")}
    keys = [filled(key, params) for key in stage.get("params", []) if key != "image_folder"]
    values = {key: value_at(params, key) for key in keys}
    return digest({"command": stage["cmd"], "code": code, "params": values, "before": before, "images": images})


@dataclass
class Experiment:
    """The folders, parameters and finished steps of one run."""

    work: Path
    params: dict[str, dict[str, Any]]  # of each folder below `work`
    images: str

    def __post_init__(self) -> None:
        self.described = stages()
        self.record = self.work / "steps.json"
        self.done = self._recorded()
        for folder, params in self.params.items():
            place = self.work / folder
            (place / "data").mkdir(parents=True, exist_ok=True)
            (place / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
            if folder != "common":
                for name in (f"{params['dataset']}.zarr", "gradients", "baseline", "attacks", "diffusion"):
                    link = place / "data" / name
                    if not link.is_symlink():
                        link.symlink_to(Path("../../common/data") / name)

    def _recorded(self) -> dict[str, dict[str, Any]]:
        if not self.record.exists():
            return {}
        try:
            recorded = json.loads(self.record.read_text(encoding="utf-8"))
            valid = all({"identity", "seconds", "finished"} <= done.keys() for done in recorded.values())
        except (ValueError, AttributeError):
            valid = False
        if not valid:
            raise typer.BadParameter(
                f"{self.record} is no record of finished steps; remove it, and every step runs again",
                param_hint="--work",
            )
        return dict(recorded)

    def run(self, step: Step) -> None:
        """Run a step unless it is done; ends the program with its exit code if it fails."""
        stage = self.described[step.stage]
        before = [self.done[name]["identity"] for name in step.after]
        mark = identity(stage, self.params[step.folder], before, self.images)
        place = self.work / step.folder
        absent = [name for name in outputs(stage, self.params[step.folder]) if not (place / name).exists()]
        if self.done.get(step.name, {}).get("identity") == mark and not absent:
            print(f"{step.name}: done before ({self.done[step.name]['finished']})", flush=True)
            return
        print(f"\n=== {step.name}: {stage['cmd']}", flush=True)
        start = time.perf_counter()
        _, script, *options = stage["cmd"].split()
        command = [sys.executable, str(CHECKOUT / script), *options]
        code = subprocess.run(command, cwd=place, check=False).returncode
        if code:
            print(f"{step.name} ended with exit code {code}; the same command goes on from here", file=sys.stderr)
            sys.exit(code)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.done[step.name] = {
            "identity": mark, "seconds": round(time.perf_counter() - start, 1), "finished": now,
        }  # fmt: skip
        write_json(self.record, self.done)


def results(
    experiment: Experiment, classifiers: dict[str, Any], published: dict[str, Any], size: str
) -> dict[str, Any]:
    """What each classifier reached beside the published accuracies (in percent), and the seconds of each step."""
    rows: dict[str, Any] = {}
    for name in classifiers:
        metrics = experiment.work / name / "metrics"
        attacked = json.loads((metrics / "autoattack.json").read_text())
        for who, key in ((name, "model"), ("vanilla", "baseline")):
            rows[who] = {"autoattack": attacked[key], "images": attacked["images"], "published": published.get(who)}
        alignment = json.loads((metrics / "alignment.json").read_text())
        training = json.loads((metrics / "training.json").read_text())
        rows[name] |= {"alignment": alignment, "validation": training["validation"]}
    baseline = json.loads((experiment.work / "common/data/baseline_training.json").read_text())
    rows["vanilla"]["validation"] = baseline["validation"]
    return {
        "size": size,
        "classifiers": rows,
        "seconds": {name: done["seconds"] for name, done in experiment.done.items()},
    }


def table(summary: dict[str, Any]) -> str:
    """The results as Markdown: accuracies in percent on the attacked test images, and the published ones."""
    lines: list[str] = []
    for name, row in summary["classifiers"].items():
        accuracies = {key: value for key, value in row["autoattack"].items() if isinstance(value, float)}
        if not lines:
            lines = [
                f"| classifier ({row['images']} test images) | {' | '.join(accuracies)} | published: clean, L2, Linf |",
                "|---" * (len(accuracies) + 2) + "|",
            ]
        published = "" if row["published"] is None else ", ".join(f"{value:.2f}" for value in row["published"])
        values = " | ".join(f"{100 * value:.1f}" for value in accuracies.values())
        lines.append(f"| {name} | {values} | {published} |")
    return "\n".join(lines) + "\n"


def bring_out(experiment: Experiment, out: Path, summary: dict[str, Any]) -> None:
    """Copy metrics, timings, curves, cards and parameters to `out`, and write results.json there."""
    for folder in experiment.params:
        place = experiment.work / folder
        for name in SMALL_FILES:
            if (place / name).exists():
                shutil.copytree(place / name, out / folder / name, dirs_exist_ok=True)
        for card in (*place.glob("data/*/card.json"), place / "params.yaml"):
            if card.parent.is_symlink():
                continue
            target = out / folder / (card.parent.name + "_" + card.name if card.name == "card.json" else card.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card, target)
    write_json(out / "results.json", summary)


def main(
    description: Annotated[Path, typer.Argument(help="The experiment, for example experiments/cifar10_resnet18.yaml.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder with train and test, as folders or .tar.* files; none: torchvision's CIFAR-10."),
    ] = None,
    work: Annotated[Path, typer.Option(help="Where the steps work; give the same folder to go on.")] = Path("work"),
    out: Annotated[Path | None, typer.Option(help="Copy metrics and small files here when all is done.")] = None,
    size: Annotated[str, typer.Option(help="Which of the description's sizes.")] = "full",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", help="A parameter, as train.epochs=10; NAME:train.epochs=10 of one classifier."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
) -> None:
    """Run every step that is not done, and write what came out."""
    described = yaml.safe_load(description.read_text(encoding="utf-8"))
    if size not in described["sizes"]:
        raise typer.BadParameter(f"{size} is not one of: {', '.join(described['sizes'])}", param_hint="--size")
    chosen, classifiers = dict(described["sizes"][size]), described["classifiers"]
    classes = chosen.pop("classes", None)
    base = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    common = laid_over(base, described["params"], chosen)
    if images is None:
        common["dataset"], mark = "cifar10", "torchvision"
    else:
        place, mark = arrange_images(images, work, classes)
        common["image_folder"] = str(place.resolve())
    params = {"common": common} | {name: laid_over(common, layer) for name, layer in classifiers.items()}
    for text in change or []:
        _set(params, text)
    experiment = Experiment(work, params, mark)
    for step in steps_of(classifiers):
        experiment.run(step)
        if step.name == until:
            return
    summary = results(experiment, classifiers, described.get("published", {}), size)
    write_json(work / "results.json", summary)
    if out is not None:
        bring_out(experiment, out, summary)
    print(f"\n{table(summary)}\n{(out or work) / 'results.json'}")


def _set(params: dict[str, dict[str, Any]], text: str) -> None:
    key, separator, value = text.partition("=")
    folder, colon, rest = key.partition(":")
    targets, dotted = ([folder], rest) if colon else (list(params), key)
    *sections, last = dotted.split(".")
    for target in targets:
        place: Any = params.get(target)
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or last not in place:
            raise typer.BadParameter(f"{text}: no such parameter (SECTION.KEY=VALUE)", param_hint="--set")
        place[last] = yaml.safe_load(value)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

"""An experiment as data: parameters laid over params.yaml, several classifiers, published numbers beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from pag_core.params.reading import parse_params
from pag_core.pipeline.code_identity import CHECKOUT

Plain = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """What is run: the parameters of each classifier (as params.yaml holds them), and the stages that are wanted of it.

    `classes` are the class folders taken of a folder of images, None takes all; `published` has clean accuracy and
    robust accuracies by classifier, in percent.
    """

    name: str
    params: dict[str, Plain]
    stages: tuple[str, ...]
    classes: list[str] | None
    published: dict[str, list[float]]

    def on_images(self, folder: Path) -> "Experiment":
        """The same on the images of `folder`, as `image_folder` takes them."""
        chosen = {"dataset": "image_folder", "image_folder": str(folder.resolve())}
        params = {name: {**plain, **chosen} for name, plain in self.params.items()}
        return Experiment(self.name, params, self.stages, self.classes, self.published)


def base_params() -> Plain:
    """params.yaml as plain data."""
    content: Plain = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    return content


def laid_over(params: Plain, *layers: Plain) -> Plain:
    """`params` with the values of `layers` in place of its own; a section keeps what a layer does not name."""
    merged = dict(params)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            # grids of radii are values, not sections
            merged[key] = laid_over(merged[key], value) if both and not key.endswith("radii") else value
    return merged


def read_experiment(file: Path, size: str, changes: list[str]) -> Experiment:
    """The experiment that `file` describes at one of its sizes, with changes `KEY=VALUE` or `CLASSIFIER:KEY=VALUE`.

    Raises BadParameter for a size or key that does not exist, and ParamsError for a value that params.yaml refuses.
    """
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    if size not in described["sizes"]:
        raise typer.BadParameter(f"{size} is not one of: {', '.join(described['sizes'])}", param_hint="--size")
    chosen = dict(described["sizes"][size])
    classes = chosen.pop("classes", None)
    common = laid_over(base_params(), described["params"], chosen)
    params = {name: laid_over(common, layer) for name, layer in described["classifiers"].items()}
    for change in changes:
        _set(params, change)
    for name, plain in params.items():
        parse_params(plain, f"{file} ({size}, {name})")
    return Experiment(
        f"{file.stem}-{size}", params, tuple(described["stages"]), classes, described.get("published", {})
    )


def _set(params: dict[str, Plain], change: str) -> None:
    key, separator, value = change.partition("=")
    name, colon, rest = key.partition(":")
    targets, dotted = ([name], rest) if colon else (list(params), key)
    *sections, last = dotted.split(".")
    for target in targets:
        place: Any = params.get(target)
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not separator or not isinstance(place, dict) or last not in place:
            raise typer.BadParameter(f"{change}: no such parameter (SECTION.KEY=VALUE)", param_hint="--set")
        place[last] = yaml.safe_load(value)


def table(experiment: Experiment, autoattack: dict[str, Plain]) -> str:
    """The accuracies of each classifier in percent, and the published ones, as Markdown.

    `autoattack` has each classifier's metrics/autoattack.json; the vanilla baseline beside them is the same for all.
    """
    baselines = {"vanilla": next(iter(autoattack.values()))["baseline"]}
    rows = baselines | {name: metrics["model"] for name, metrics in autoattack.items()}
    settings = ["clean", *sorted(set(baselines["vanilla"]) - {"clean"})]
    images = next(iter(autoattack.values()))["images"]
    lines = [
        f"| classifier ({images} test images) | {' | '.join(settings)} | published: clean, L2, Linf |",
        "|---" * (len(settings) + 2) + "|",
    ]
    for name, accuracies in rows.items():
        published = ", ".join(f"{value:.2f}" for value in experiment.published.get(name, []))
        values = " | ".join(f"{100 * accuracies[setting]:.1f}" for setting in settings)
        lines.append(f"| {name} | {values} | {published} |")
    return "\n".join(lines) + "\n"

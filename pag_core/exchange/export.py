"""A trained classifier as one folder that other programs load without this project: `python -m pag_core.exchange.export`."""

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save

from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.errors import ArtifactError
from pag_core.exchange.measured import measurements
from pag_core.exchange.model_card import model_card
from pag_core.pipeline.artifacts import replacing_folder, write_json
from pag_core.pipeline.code_identity import CHECKOUT, PACKAGE, import_closure
from pag_core.pipeline.paths import classifier_path, dataset_path
from pag_core.pipeline.stage import run, stage

STANDALONE = "pag_classifier"  # the package that travels with the weights
LOADING = Path(PACKAGE) / "exchange" / "standalone" / "loading.py"
ATTACK = LOADING.with_name("attack.py")
IMPORT = re.compile(rf"^(\s*)from ({PACKAGE}(?:\.\w+)+) import", re.MULTILINE)


def _travelling(path: Path) -> str:
    """The code of a file of this project, its imports turned to the package that travels."""

    def turned(found: re.Match[str]) -> str:
        name = found[2].rsplit(".", 1)[-1]
        return f"{found[1]}from {STANDALONE if name == LOADING.stem else f'{STANDALONE}.{name}'} import"

    return IMPORT.sub(turned, (CHECKOUT / path).read_text(encoding="utf-8"))


def write_code(folder: Path, *, attack: bool) -> None:
    """Write the package that builds and loads the network, and with `attack` the program that attacks it again."""
    package = folder / STANDALONE
    package.mkdir()
    for path in sorted(import_closure(CHECKOUT, LOADING)):
        (package / path.name).write_text(_travelling(path), encoding="utf-8")
    (package / "__init__.py").write_text(_travelling(LOADING), encoding="utf-8")
    if attack:
        (folder / "attack.py").write_text(_travelling(ATTACK), encoding="utf-8")
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")


def _write_images(path: Path, dataset: Dataset, count: int) -> None:
    test = dataset.splits["test"]
    rows = test.first(count, "autoattack.images")
    path.write_bytes(save({"images": test.images[rows].contiguous(), "labels": test.labels[rows].contiguous()}))


def export(folder: Path, who: str, dataset_name: str) -> dict[str, Any]:
    """Write the network `who` (`classifier` or `baseline`) with code, measurements and card to `folder`, whole or not at all.

    Returns the measurements. Raises ArtifactError if `folder` exists or a measurement is of another network.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: remove it, or export to another folder")
    dataset = read_dataset(dataset_path(dataset_name))
    place = classifier_path(who)
    classifier, saved = load_classifier(place, dataset, torch.device("cpu"))
    measured = measurements(who, saved.fingerprint, dataset.fingerprint, dataset.classes)
    attacked = measured["autoattack"]
    with replacing_folder(folder) as partial:
        for name in ("weights.safetensors", "card.json"):
            shutil.copyfile(place / name, partial / name)
        write_code(partial, attack=attacked is not None)
        if attacked is not None:
            _write_images(partial / "attacked_images.safetensors", dataset, attacked["images"])
        write_json(partial / "measured.json", measured)
        parameters = sum(parameter.numel() for parameter in classifier.parameters())
        text = model_card(folder.name, who, dataset_name, saved.card, measured, parameters=parameters)
        (partial / "README.md").write_text(text, encoding="utf-8")
    return measured


def main(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    baseline: Annotated[bool, typer.Option("--baseline", help="Export the baseline, not the classifier.")] = False,
) -> None:
    """Export the trained classifier, with what was measured of it, to a folder that loads without this project."""
    with stage("export", reads=("dataset",)) as opened:
        measured = export(folder, "baseline" if baseline else "classifier", opened.params.dataset)
        absent = [name for name, found in measured.items() if found is None]
        print(f"{folder}: README.md says how to load it" + "".join(f"; {name}: not measured" for name in absent))


if __name__ == "__main__":
    run(main)

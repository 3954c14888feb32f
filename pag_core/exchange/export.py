"""A trained classifier as one folder that other programs load without this project: `python -m pag_core.exchange.export`."""

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
from pag_core.exchange.travelling_code import write_code
from pag_core.pipeline.artifacts import replacing_folder, write_json
from pag_core.pipeline.paths import classifier_path, dataset_path, measured_path
from pag_core.pipeline.stage import run, stage


def _write_images(path: Path, dataset: Dataset, count: int) -> None:
    test = dataset.splits["test"]
    rows = test.first(count, "autoattack.images")
    path.write_bytes(save({"images": test.chosen(rows).contiguous(), "labels": test.labels[rows].contiguous()}))


def export(
    folder: Path, who: str, dataset_name: str, checkpoint: str = str(classifier_path("classifier"))
) -> dict[str, Any]:
    """Write the network `who` (`classifier` or `baseline`) with code, measurements and card to `folder`, whole or not at all.

    `checkpoint` is where the classifier lies. Returns the measurements. Raises ArtifactError if `folder` exists or a
    measurement is of another network.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: remove it, or export to another folder")
    dataset = read_dataset(dataset_path(dataset_name))
    place = measured_path(who, checkpoint)
    classifier, saved = load_classifier(place, dataset, torch.device("cpu"))
    measured = measurements(who, saved.fingerprint, dataset.fingerprint, dataset.classes)
    attacked = measured["autoattack"]
    with replacing_folder(folder) as partial:
        for name in ("weights.safetensors", "card.json"):
            shutil.copyfile(place / name, partial / name)
        write_code(partial, saved.card["arch"], attack=attacked is not None)
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
        params = opened.params
        measured = export(
            folder, "baseline" if baseline else "classifier", params.dataset, params.classifier_checkpoint
        )
        absent = [name for name, found in measured.items() if found is None]
        print(f"{folder}: README.md says how to load it" + "".join(f"; {name}: not measured" for name in absent))


if __name__ == "__main__":
    run(main)

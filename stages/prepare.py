"""Prepare the dataset: verified images as uint8 Zarr with train, validation and test splits."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

import torch

from pag_core.compute.processes import usable_cores
from pag_core.datasets.loading import load_raw, state_of_source
from pag_core.datasets.prepared import shards_of
from pag_core.datasets.preparing import write_dataset
from pag_core.datasets.splits import split
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.paths import dataset_path
from pag_core.pipeline.stage import run, stage

# starting a process takes seconds: without being asked for, one is started only for this many shards
SHARDS_PER_PROCESS = 8


def main() -> None:
    """Write data/DATASET.zarr."""
    with stage("prepare", reads=("dataset", "image_folder", "seed", "prepare"), shared=True) as opened:
        params = opened.params
        path = dataset_path(params.dataset)
        provenance = opened.provenance(inputs={}, on_device=False)
        begun = {"provenance": provenance, "source": state_of_source(params)}
        with run_folder("prepare", begun, torch.device("cpu")) as folder:
            raw = load_raw(params, folder.path)
            splits = split(
                raw,
                validation_fraction=params.prepare.validation_fraction,
                test_fraction=params.prepare.test_fraction,
                images_per_class=params.prepare.images_per_class,
                seed=params.seed,
            )
            shards = sum(len(shards_of(len(part), part.shape[1:])) for part in splits.values())
            processes = params.processes or max(1, min(usable_cores(), shards // SHARDS_PER_PROCESS))
            # what is in memory already is written as fast by one
            one = params.dataset != "image_folder"
            written = write_dataset(
                path, raw.class_names, splits, provenance, folder=folder, processes=1 if one else processes
            )
        if written.changes:
            listed = ", ".join(f"{count} images {what}" for what, count in sorted(written.changes.items()))
            print(f"{params.image_folder}: {listed}")
        sizes = ", ".join(f"{len(part)} {name}" for name, part in splits.items())
        print(f"{path}: {sizes} images {splits['train'].shape[1:]} of {len(raw.class_names)} classes")
        for name, count in written.repeated.items():
            if count:
                print(f"{count} {name} images are in the training split too, pixel for pixel")


if __name__ == "__main__":
    run(main)

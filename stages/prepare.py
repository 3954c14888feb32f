"""Prepare the dataset: verified images as uint8 Zarr with train, validation and test splits."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.datasets.loading import load_raw
from pag_core.datasets.prepared import write_dataset
from pag_core.datasets.splits import repeated_images, split
from pag_core.pipeline.paths import dataset_path
from pag_core.pipeline.stage import run, stage


def main() -> None:
    """Write data/DATASET.zarr."""
    with stage("prepare", reads=("dataset", "image_folder", "seed", "prepare")) as opened:
        params = opened.params
        raw = load_raw(params)
        splits = split(
            raw,
            validation_fraction=params.prepare.validation_fraction,
            test_fraction=params.prepare.test_fraction,
            images_per_class=params.prepare.images_per_class,
            seed=params.seed,
        )
        path = dataset_path(params.dataset)
        provenance = opened.provenance(inputs={}, on_device=False)
        write_dataset(path, raw.class_names, splits, provenance)
        sizes = ", ".join(f"{len(part)} {name}" for name, part in splits.items())
        print(f"{path}: {sizes} images {splits['train'].images.shape[1:]} of {len(raw.class_names)} classes")
        for name, count in repeated_images(splits).items():
            if count:
                print(f"{count} {name} images are in the training split too, pixel for pixel")


if __name__ == "__main__":
    run(main)

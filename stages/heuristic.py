"""Write the target gradients of a heuristic source (Section 4.1), or the empty store of vanilla training."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

import torch

from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ParamsError
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives
from pag_core.gradients.store import write_small_store
from pag_core.params import load_params
from pag_core.provenance import provenance
from pag_core.stage import run, stage


def main(source: str) -> None:
    """Write data/gradients/SOURCE.zarr; SOURCE is none, oi, cm or nn."""
    with stage(source):
        params = load_params()
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        train = dataset.splits["train"]
        arrays: dict[str, torch.Tensor] = {}
        match source:
            case "none":
                kind = "none"
            case "oi":
                kind = "representatives"
                arrays[kind] = one_image_representatives(train, dataset.classes, seed=params.seed)
            case "cm":
                kind = "representatives"
                arrays[kind] = class_mean_representatives(train, dataset.classes, factor=params.cm.factor)
            case "nn":
                kind = "neighbours"
                samples = class_samples(
                    train, dataset.classes, samples_per_class=params.nn.samples_per_class, seed=params.seed
                )
                for split in ("train", "test"):
                    arrays[f"{split}/{kind}"] = nearest_neighbor_indices(dataset.splits[split].images, train, samples)
            case _:
                raise ParamsError(f"source {source!r} is not one of: none, oi, cm, nn")
        origin = provenance(
            params=params.section(*(["dataset"] if source == "none" else ["dataset", source])),
            seed=params.seed,
            inputs={"dataset": dataset.fingerprint},
            device=None,
        )
        write_small_store(Path("data/gradients") / f"{source}.zarr", dataset, source, kind, arrays, origin)


if __name__ == "__main__":
    run(main)

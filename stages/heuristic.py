"""Write the target gradients of a heuristic source (Section 4.1), or the empty store of vanilla training."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ParamsError
from pag_core.gradient_store.store import write_small_store
from pag_core.gradients.sources import SOURCES
from pag_core.pipeline.paths import dataset_path, gradients_path
from pag_core.pipeline.stage import run, stage


def main(source: str) -> None:
    """Write data/gradients/SOURCE.zarr."""
    with stage(source, reads=("dataset", "seed", source)) as opened:
        makers = {name: found.store for name, found in SOURCES.items() if found.store is not None}
        if source not in makers:
            raise ParamsError(f"python stages/heuristic.py {source}: the source is not one of: {', '.join(makers)}")
        dataset = read_dataset(dataset_path(opened.params.dataset))
        images = {split: dataset.splits[split] for split in ("train", "test")}
        content = makers[source](dataset, opened.params, images)
        provenance = opened.provenance(inputs={"dataset": dataset.fingerprint}, on_device=False)
        write_small_store(gradients_path(source), dataset, source, content, provenance)


if __name__ == "__main__":
    run(main)

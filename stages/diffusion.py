"""Train the diffusion model with C+1 classes (Section 4.2, Appendix G.2)."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.compute.processes import processes_here, replica_count
from pag_core.datasets.image_feed import open_images
from pag_core.datasets.prepared import read_dataset
from pag_core.diffusion.network import KIND, architecture, build_network
from pag_core.diffusion.training import train_diffusion
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.curves import Curves
from pag_core.pipeline.paths import DIFFUSION, curves_path, dataset_path
from pag_core.pipeline.saved_network import save_network
from pag_core.pipeline.stage import run, stage


def main() -> None:
    """Write data/diffusion and curves/diffusion."""
    reads = ("dataset", "seed", "diffusion", "feed.window_shards")
    with stage("diffusion", reads=reads, shared=True, memory="diffusion.batch_size") as opened:
        params = opened.params
        dataset = read_dataset(dataset_path(params.dataset))
        shape = architecture(params.diffusion)
        processes = replica_count(params.processes)
        opened.divide_cores(processes)
        provenance = opened.provenance(inputs={"dataset": dataset.fingerprint}, processes=processes)
        with run_folder("diffusion", provenance, opened.device) as folder:
            dataset = open_images(
                dataset,
                opened.device,
                params=params.feed,
                folder=folder,
                processes=processes_here(params.processes),
            )
            weights, curve = train_diffusion(
                lambda: build_network(shape, dataset.image_shape, dataset.classes),
                dataset.splits["train"],
                card=shape,
                params=params.diffusion,
                classes=dataset.classes,
                seed=params.seed,
                device=opened.device,
                folder=folder,
                checkpoint_seconds=params.checkpoint_seconds,
                processes=processes,
            )
            Curves(curves_path("diffusion"), curve).close()
            card = {
                "kind": KIND,
                "architecture": shape,
                "class_names": list(dataset.class_names),
                "image_shape": list(dataset.image_shape),
                "dataset": dataset.fingerprint,
                "provenance": provenance,
            }
            save_network(DIFFUSION, weights, card)


if __name__ == "__main__":
    run(main)

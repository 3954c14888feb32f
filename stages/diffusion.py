"""Train the diffusion model with C+1 classes (Section 4.2, Appendix G.2)."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from pag_core.checkpoint import run_folder
from pag_core.datasets.prepared import read_dataset
from pag_core.device import prepare_device
from pag_core.diffusion.network import KIND, architecture, build_network
from pag_core.diffusion.training import train_diffusion
from pag_core.params import load_params
from pag_core.processes import replica_count
from pag_core.provenance import provenance
from pag_core.stage import run, stage
from pag_core.training.curves import Curves
from pag_core.weights import save_network


def main() -> None:
    """Write data/diffusion and curves/diffusion."""
    with stage("diffusion", shared=True):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        shape = architecture(params.diffusion)
        processes = replica_count(params.processes)
        origin = provenance(
            params=params.section("diffusion"),
            seed=params.seed,
            inputs={"dataset": dataset.fingerprint},
            device=device,
            processes=processes,
        )
        identity = {"params": origin["params"], "seed": params.seed, "processes": processes, **origin["inputs"]}
        with run_folder("diffusion", identity, device) as folder:
            weights, curve = train_diffusion(
                lambda: build_network(shape, dataset.image_shape, dataset.classes),
                dataset.splits["train"],
                card=shape,
                params=params.diffusion,
                classes=dataset.classes,
                seed=params.seed,
                device=device,
                folder=folder,
                processes=processes,
            )
            Curves(Path("curves/diffusion"), curve).close()
            card = {
                "kind": KIND,
                "architecture": shape,
                "class_names": list(dataset.class_names),
                "image_shape": list(dataset.image_shape),
                "dataset": dataset.fingerprint,
                "provenance": origin,
            }
            save_network(Path("data/diffusion"), weights, card)


if __name__ == "__main__":
    run(main)

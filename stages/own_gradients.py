"""Write the target gradients of a function of the user's (`source: own`) into a store."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ParamsError
from pag_core.gradients.distillation import (
    Distillation,
    distill,
    distilling_processes,
    require_kept_classes,
    shards_of,
)
from pag_core.gradients.own import OwnGradients
from pag_core.pipeline.artifacts import content_digest
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.code_identity import own_code_inputs
from pag_core.pipeline.paths import dataset_path, gradients_path
from pag_core.pipeline.stage import run, stage

READS = ("dataset", "seed", "own.function", "own.options", "own.reads", "own.batch_size", "gradient_store")


def main() -> None:
    """Write data/gradients/own.zarr."""
    with stage("own", reads=READS, shared=True, memory="own.batch_size") as opened:
        params, own = opened.params, opened.all_params.own
        if own.function is None:
            raise ParamsError("params.yaml: own.function is null; name a function of yours, as own.gradients:NAME")
        if not Path(own.reads).exists():
            raise ParamsError(f"params.yaml: own.reads is {own.reads}, which is not there")
        dataset = read_dataset(dataset_path(params.dataset))
        require_kept_classes(params.gradient_store, dataset.classes)
        maker = OwnGradients(own, opened.device)
        work = Distillation(params.gradient_store, params.seed)
        processes = distilling_processes(params.processes, opened.device, len(shards_of(dataset, work)))
        opened.divide_cores(processes)
        inputs = {"dataset": dataset.fingerprint, **own_code_inputs(own.function, "own.function")}
        inputs |= {"own.reads": content_digest(Path(own.reads))}
        provenance = opened.provenance(inputs=inputs)
        with run_folder("own", provenance, opened.device) as folder:
            distill(
                gradients_path("own"),
                maker,
                dataset,
                work,
                source="own",
                folder=folder,
                provenance=provenance,
                measured={},
                processes=processes,
            )


if __name__ == "__main__":
    run(main)

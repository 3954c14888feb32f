"""Train the classifier with Eq. 4 against the store of its source, or the vanilla baseline."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from typing import Annotated, Any

import typer

from pag_core.artifacts import write_json
from pag_core.checkpoint import RunFolder, run_folder
from pag_core.classifiers.building import build_classifier, save_classifier
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.device import prepare_device
from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.fitness import accuracy
from pag_core.gradients.feed import open_feed
from pag_core.gradients.manifest import read_manifest
from pag_core.params import Params, load_params
from pag_core.processes import processes_here, replica_count
from pag_core.provenance import provenance
from pag_core.randomness import seed_global_streams
from pag_core.stage import run, stage
from pag_core.training.classifier import Trainer
from pag_core.training.step import Alignment
from pag_core.weights import load_network

VALIDATION_APGD_STEPS = 20


def _alignment(
    params: Params, dataset: Dataset, store: Path, device: Any, folder: RunFolder, processes: int
) -> Alignment | None:
    """The alignment term of Eq. 4, or None for vanilla training (source none, or lambda 0)."""
    if params.source == "none" or params.weight == 0:
        return None
    made_from = {}
    checkpoint = Path(params.diffusion_checkpoint)
    if params.source == "sbg" and checkpoint.exists():
        made_from["diffusion model"] = load_network(checkpoint, "diffusion").fingerprint
    targets = open_feed(
        store, dataset, device, params=params.feed, folder=folder, made_from=made_from, processes=processes
    )
    return Alignment(targets, params.weight, params.objective)


def _validation(params: Params, dataset: Dataset, classifier: NormalizedClassifier, device: Any) -> dict[str, Any]:
    """Clean accuracy on the validation split, and accuracy under a short attack on part of it."""
    validation = dataset.splits["validation"].to(device)
    rows = validation.first(params.train.validation_attacked, "train.validation_attacked")
    images, labels = validation.pixels(rows), validation.labels[rows]
    proxy = apgd_accuracy(
        classifier,
        images,
        labels,
        radii=params.train.validation_radii,
        classes=dataset.classes,
        steps=VALIDATION_APGD_STEPS,
        seed=params.seed,
    )
    return {
        "clean": accuracy(classifier, validation.pixels(), validation.labels),
        f"APGD-{VALIDATION_APGD_STEPS} on {len(labels)} images (fast proxy)": proxy,
    }


def main(
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train the vanilla baseline of the same recipe.")
    ] = False,
) -> None:
    """Write data/classifier (or data/baseline), its curves and metrics/training.json."""
    name = "baseline" if baseline else "classifier"
    with stage(name, shared=True):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        # before the training, not after it
        dataset.splits["validation"].first(params.train.validation_attacked, "train.validation_attacked")
        sections, inputs = ["arch", "classifier", "train"], {"dataset": dataset.fingerprint}
        store = Path("data/gradients") / f"{params.source}.zarr"
        if not baseline:
            sections += ["source", "lambda", "objective"]
            inputs["gradient store"] = read_manifest(store)["checksum"]
        processes = replica_count(params.processes)
        origin = provenance(
            params=params.section(*sections), seed=params.seed, inputs=inputs, device=device, processes=processes
        )
        options = params.classifier.model_dump()
        identity = {"params": origin["params"], "seed": params.seed, "processes": processes, **inputs}
        if not baseline and params.feed.window_shards is not None:
            origin["params"]["feed"] = identity["feed"] = {"window_shards": params.feed.window_shards}
        with run_folder(name, identity, device) as folder:
            here = processes_here(params.processes)
            alignment = None if baseline else _alignment(params, dataset, store, device, folder, here)
            seed_global_streams(params.seed, "classifier")
            classifier = build_classifier(
                params.arch, **options, image_shape=dataset.image_shape, classes=dataset.classes
            ).to(device)
            trainer = Trainer(
                classifier=classifier,
                train=dataset.splits["train"],
                classes=dataset.classes,
                params=params.train,
                alignment=alignment,
                seed=params.seed,
                device=device,
                folder=folder,
                processes=processes,
            )
            history = trainer.run(Path("curves") / name)
            classifier.eval().requires_grad_(False)
            metrics = {
                "train": {key: value for key, value in history[-1].items() if key != "step"},
                "validation": _validation(params, dataset, classifier, device),
            }
            save_classifier(
                Path("data") / name, classifier, arch=params.arch, options=options, dataset=dataset, provenance=origin
            )
            place = Path("data/baseline_training.json") if baseline else Path("metrics/training.json")
            write_json(place, metrics)


if __name__ == "__main__":
    run(main)

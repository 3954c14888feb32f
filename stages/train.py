"""Train the classifier with Eq. 4 against the store of its source, or the vanilla baseline."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from typing import Annotated

import typer

from pag_core.classifiers.building import build_classifier, save_classifier
from pag_core.compute.processes import processes_here, replica_count
from pag_core.compute.randomness import seed_global_streams
from pag_core.datasets.counts import count
from pag_core.datasets.image_feed import open_images
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.errors import ParamsError
from pag_core.evaluation.validation import validated, validation_row
from pag_core.gradient_store.feed import open_feed, require_feedable
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.controls import exchanged, require_exchangeable
from pag_core.gradients.online import open_online
from pag_core.objective.methods import build_method
from pag_core.params.declared import validation_record
from pag_core.params.sections import ObjectiveParams
from pag_core.params.values import is_imported
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.checkpoint import RunFolder, run_folder
from pag_core.pipeline.code_identity import own_code_inputs
from pag_core.pipeline.paths import classifier_path, curves_path, dataset_path, gradients_path
from pag_core.pipeline.saved_network import load_network
from pag_core.pipeline.stage import OpenStage, run, stage
from pag_core.training.classifier import Trainer, Validate
from pag_core.training.step import AlignmentTerm

RECIPE = ("dataset", "arch", "seed", "classifier", "train")
READS = {
    "classifier": (*RECIPE, "source", "own.function", "lambda", "source_defaults.${source}", "control", "method",
                   "${method}", "objective", "feed.window_shards"),
    # of the objective a baseline has the form of its input-gradients, which the gradient norm takes
    "baseline": (*RECIPE, "baseline_method", "${baseline_method}", "objective.differentiation", "objective.batch_norm",
                 "feed.window_shards"),
}  # fmt: skip


def _alignment_term(
    opened: OpenStage, dataset: Dataset, store: GradientStore, folder: RunFolder
) -> AlignmentTerm | None:
    """The second term of Eq. 4, or None for vanilla training (source none, or lambda 0)."""
    params = opened.params
    control = params.control
    require_exchangeable(params)
    require_feedable(params)
    if params.source == "none" or params.lambda_ == 0:
        return None
    if params.source == "sbg_online":
        teacher = open_online(store, dataset, opened.device)
        return AlignmentTerm(teacher, params.lambda_, params.objective)
    inputs = {}
    # a guard: what the term takes from the model is the store
    checkpoint = Path(opened.all_params.diffusion_checkpoint)
    if params.source == "sbg" and checkpoint.exists():
        inputs["diffusion model"] = load_network(checkpoint, "diffusion").fingerprint
    targets = open_feed(
        store,
        dataset,
        opened.device,
        params=params.feed,
        folder=folder,
        inputs=inputs,
        processes=processes_here(params.processes),
        taken=dataset.splits["train"].held_bytes,
    )
    if control is not None:
        train = dataset.splits["train"].to(opened.device)
        targets = exchanged(targets, control, train, classes=dataset.classes, seed=params.seed)
    return AlignmentTerm(targets, params.lambda_, params.objective)


def _inputs(opened: OpenStage, dataset: Dataset, store: GradientStore | None) -> dict[str, str]:
    """What the training is made from, besides the parameters: fingerprints by name."""
    # of a network of the user's also its code: neither checkpoint nor weights are those of another
    inputs = {"dataset": dataset.fingerprint, **own_code_inputs(opened.params.arch, "arch")}
    if store is not None:
        inputs["gradient store"] = store.manifest["checksum"]
    if opened.params.train.validate_every:
        inputs["validation parameters"] = digest(validation_record(opened.all_params.section("train", "validation")))
    return inputs


def _validate(opened: OpenStage, dataset: Dataset) -> Validate | None:
    """What measures a network between epochs, as stages/validation.py will in the end; None where nothing does."""
    if not opened.params.train.validate_every:
        return None
    # an input of its own: a training without validation does not depend on it
    params, split = opened.all_params.validation, dataset.splits["validation"].to(opened.device)
    return lambda network: validation_row(
        *validated(network, split, params, classes=dataset.classes, seed=opened.params.seed)
    )


def main(
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train the vanilla baseline of the same recipe.")
    ] = False,
) -> None:
    """Write data/classifier (or data/baseline) and its curves; stages/validation.py measures it."""
    who = "baseline" if baseline else "classifier"
    with stage(who, reads=READS[who], shared=True, memory="train.batch_size") as opened:
        if not baseline and is_imported(checkpoint := opened.params.classifier_checkpoint):
            raise ParamsError(
                f"params.yaml: classifier_checkpoint is {checkpoint}, which is measured in place of a trained classifier; to "
                "train one set it to data/classifier"
            )
        dataset = read_dataset(dataset_path(opened.params.dataset))
        params, device = count(opened, dataset), opened.device
        store = None if baseline else GradientStore(gradients_path(params.source))
        inputs = _inputs(opened, dataset, store)
        processes = replica_count(params.processes)
        opened.divide_cores(processes)
        provenance = opened.provenance(inputs=inputs, processes=processes)
        options, config = params.classifier.model_dump(), params.objective
        if baseline:  # the objective asks for an output too, of no class
            config = ObjectiveParams.model_construct(
                output="logit", differentiation=config.differentiation, batch_norm=config.batch_norm
            )
        seed_global_streams(params.seed, "classifier")
        # before the images are opened, which may copy all of them: an option that the network refuses is told at once
        classifier = build_classifier(
            params.arch, **options, image_shape=dataset.image_shape, classes=dataset.classes
        ).to(device)
        with run_folder(who, provenance, device) as folder:
            dataset = open_images(
                dataset,
                device,
                params=params.feed,
                folder=folder,
                processes=processes_here(params.processes),
                run=None if store is None else store.images_per_shard,
            )
            term = None if store is None else _alignment_term(opened, dataset, store, folder)
            trainer = Trainer(
                classifier=classifier,
                train=dataset.splits["train"],
                classes=dataset.classes,
                params=params.train,
                term=term,
                seed=params.seed,
                device=device,
                folder=folder,
                processes=processes,
                checkpoint_seconds=params.checkpoint_seconds,
                method=build_method(params.baseline_method if baseline else params.method, params),
                config=config,
                validate=_validate(opened, dataset),
            )
            history = trainer.run(curves_path(who))
            classifier.eval().requires_grad_(False)
            save_classifier(
                classifier_path(who),
                classifier,
                arch=params.arch,
                options=options,
                dataset=dataset,
                provenance=provenance,
                training={key: value for key, value in history[-1].items() if key != "step"},
                kept={"epoch": trainer.kept_epoch, "epochs": params.train.epochs, "best_by": params.train.best_by}
                if params.train.keep == "best"
                else None,
            )


if __name__ == "__main__":
    run(main)

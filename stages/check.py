"""Check that what is asked for fits the data, before anything that runs long; all that does not is named at once."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from collections.abc import Callable
from functools import partial

import torch

from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.building import load_classifier, require_imported
from pag_core.compute.compiler import require_compiler, require_one_process
from pag_core.compute.precision import require_precision
from pag_core.compute.processes import replica_count
from pag_core.datasets.counts import count, slots
from pag_core.datasets.prepared import Dataset, Split, read_dataset
from pag_core.diffusion.network import (
    architecture,
    load_noise_predictor,
    require_fitting,
    require_trained_for,
)
from pag_core.errors import PagError, ParamsError
from pag_core.evaluation.pag_score import require_held_gradients, require_known_classes
from pag_core.gradient_store.feed import require_feedable
from pag_core.gradient_store.remote import RemoteShards
from pag_core.gradients.controls import require_exchangeable
from pag_core.gradients.distillation import require_kept_classes
from pag_core.gradients.nearest_neighbor import require_neighbors
from pag_core.gradients.own import OwnGradients
from pag_core.objective.methods import build_method
from pag_core.params.declared import ALL
from pag_core.params.sections import ObjectiveParams, Params
from pag_core.params.values import CheckedStage, MethodName, is_imported
from pag_core.pipeline.artifacts import replacing_file
from pag_core.pipeline.paths import CHECKED, DIFFUSION, dataset_path
from pag_core.pipeline.stage import run, stage
from pag_core.pipeline.uncommitted import uncommitted
from pag_core.training.classifier import require_drawn_classes
from pag_core.training.smallest_batch import require_smallest_batch
from pag_core.training.step import require_config

# a rule raises where it is broken
Rule = Callable[[], object]
# always the same, so that DVC runs nothing again where parameters have changed and still fit
CONTENT = "What params.yaml asks for fits the data.\n"


def _wanted(params: Params, name: CheckedStage) -> bool:
    return params.check.stages is None or name in params.check.stages


def counts(params: Params, dataset: Dataset) -> list[Rule]:
    """Numbers of images against what the splits have."""
    validation, train, test = (dataset.splits[name] for name in ("validation", "train", "test"))
    asked: dict[CheckedStage, list[tuple[Split, int, str]]] = {
        "validation": [(validation, params.validation.images, "validation.images")],
        "autoattack": [(test, params.autoattack.images, "autoattack.images")],
        "foolbox": [(test, params.foolbox.images, "foolbox.images")],
        "masking": [(test, params.masking.images, "masking.images")],
        "pag_score": [
            (test, params.pag_score.images, "pag_score.images"),
            (test, params.pag_score.judged_images, "pag_score.judged_images"),
        ],
    }
    rules: list[Rule] = [
        partial(split.first, count, key)
        for name, counted in asked.items()
        if _wanted(params, name)
        for split, count, key in counted
    ]
    if _wanted(params, "pag_score"):
        rules += [
            partial(
                require_known_classes, train, class_names=dataset.class_names, images=params.pag_score.judge_images
            ),
            partial(require_held_gradients, params),
        ]
    return rules


def targets(params: Params, dataset: Dataset, device: torch.device) -> list[Rule]:
    """The sources that are asked for, and the classes that are taken of each image's gradients."""
    sources = {params.source}
    if _wanted(params, "pag_score") or _wanted(params, "figures"):
        sources.add(params.pag_score.reference)
    rules: list[Rule] = [partial(require_exchangeable, params), partial(require_feedable, params)]
    if "nn" in sources:
        rules.append(partial(require_neighbors, dataset.splits["train"], dataset.class_names))
    if {"sbg", "sbg_online"} & sources:
        rules += [
            partial(require_kept_classes, params.gradient_store, dataset.classes),
            partial(require_precision, params.sbg.precision, device, "sbg.precision"),
            partial(_teacher, params, dataset, device),
        ]
    if {"sbg", "sbg_online", "own"} & sources and params.gradient_store.address is not None:
        rules.append(partial(RemoteShards, params.gradient_store.address))
    if "own" in sources:
        rules += [
            partial(require_kept_classes, params.gradient_store, dataset.classes),
            partial(OwnGradients, params.own, device),
        ]
    if params.source != "none" and params.lambda_ > 0:
        held = slots(params, dataset.classes)
        rules.append(partial(require_drawn_classes, params.objective, classes=dataset.classes, slots=held))
    return rules


def _teacher(params: Params, dataset: Dataset, device: torch.device) -> None:
    """The diffusion model: the one that will be trained, or one from elsewhere if it is there already."""
    checkpoint = Path(params.diffusion_checkpoint)
    if checkpoint != DIFFUSION:
        if checkpoint.exists():
            predictor, _ = load_noise_predictor(checkpoint, dataset, torch.device("cpu"))
            require_trained_for(params.sbg.timesteps, predictor.card, checkpoint)
        return
    card = architecture(params.diffusion)
    require_fitting(card, dataset.image_shape)
    require_precision(params.diffusion.precision, device, "diffusion.precision")
    if params.diffusion.compile:
        require_one_process("diffusion.compile", several=replica_count(params.processes) > 1)
        require_compiler(device, "diffusion.compile")
    require_trained_for(params.sbg.timesteps, card, checkpoint)


def imported(params: Params, dataset: Dataset) -> None:
    """A classifier that is measured in place of a trained one: whether it is there, and of these classes and images."""
    place = Path(params.classifier_checkpoint)
    if not is_imported(params.classifier_checkpoint):
        return
    if not place.exists():
        raise ParamsError(
            f"classifier_checkpoint is {place}, which is not there; make it by python -m pag_core.exchange.import_classifier "
            "FILE, or set it to data/classifier, which is trained here"
        )
    _, saved = load_classifier(place, dataset, torch.device("cpu"))
    require_imported(place, saved.card)


def network(params: Params, dataset: Dataset, device: torch.device) -> None:
    """The classifier, built and tried: its architecture against the images, its smallest batch, and its methods."""
    classifier = build_classifier(
        params.arch, **params.classifier.model_dump(), image_shape=dataset.image_shape, classes=dataset.classes
    )
    processes = replica_count(params.processes)
    aligned = params.objective if params.source != "none" and params.lambda_ > 0 else None
    trained: dict[CheckedStage, tuple[MethodName, ObjectiveParams | None]] = {
        "train": (params.method, aligned),
        "baseline": (params.baseline_method, None),
    }
    if is_imported(params.classifier_checkpoint):
        del trained["train"]
    for name, (method, config) in trained.items():
        if _wanted(params, name):
            require_config(
                classifier,
                config,
                params.train,
                method=build_method(method, params),
                config=params.objective,
                several=processes > 1,
            )
    require_precision(params.train.precision, device, "train.precision")
    if params.train.compile:
        require_compiler(device)
    require_smallest_batch(
        classifier,
        dataset.image_shape,
        images=len(dataset.splits["train"]),
        batch_size=params.train.batch_size,
        processes=processes,
    )


def misfits(params: Params, dataset: Dataset, device: torch.device) -> list[str]:
    """What the stages that are wanted would refuse, each with its remedy."""
    rules: list[Rule] = [
        *counts(params, dataset),
        *targets(params, dataset, device),
        partial(imported, params, dataset),
        partial(network, params, dataset, device),
    ]
    found = []
    for rule in rules:
        try:
            rule()
        except PagError as error:
            found.append(str(error).removeprefix("params.yaml: "))
    return list(dict.fromkeys(found))


def main() -> None:
    """Write data/check.txt, or refuse."""
    with stage("check", reads=ALL) as opened:
        place = dataset_path(opened.params.dataset)
        dataset = read_dataset(place)
        params = count(opened, dataset)
        for key, (value, committed) in uncommitted().items():
            print(f"params.yaml: {key} is {value}; in the last commit it is {committed}", flush=True)
        if found := misfits(params, dataset, opened.device):
            sizes = ", ".join(f"{len(part)} {name}" for name, part in dataset.splits.items())
            channels, height, width = dataset.image_shape
            raise ParamsError(
                f"params.yaml asks for what {place} does not have ({sizes} images of {channels} channels and {height}x{width} "
                f"pixels, {dataset.classes} classes):\n" + "\n".join(f"  {line}" for line in found)
            )
        with replacing_file(CHECKED) as partial_file:
            partial_file.write_text(CONTENT, encoding="utf-8")


if __name__ == "__main__":
    run(main)

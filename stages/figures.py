"""Draw the figures: training curves, target gradients by source, targeted images, accuracy against radius."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from typing import Any

import torch
from torch import nn

from pag_core.classifiers.building import load_classifier
from pag_core.datasets.counts import count
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.errors import ArtifactError
from pag_core.evaluation.pgd import targeted_images
from pag_core.figures.gradient_sources import gradient_sources
from pag_core.figures.labels import baseline_label, label_of
from pag_core.figures.palette import MOST_CLASSES, save_figure
from pag_core.figures.robustness_radius import robustness_radius
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.figures.training_curves import training_curves
from pag_core.gradient_store.store import GradientStore, TargetGradients
from pag_core.gradients.sources import SOURCES, known_as
from pag_core.params.radii import radius_value
from pag_core.params.sections import Params
from pag_core.params.values import is_imported
from pag_core.pipeline.artifacts import digest, read_json, replacing_folder
from pag_core.pipeline.curves import read_curves
from pag_core.pipeline.origins import require_of_now
from pag_core.pipeline.paths import (
    FIGURES,
    classifier_path,
    curves_path,
    dataset_path,
    details_path,
    gradients_path,
    measured_path,
)
from pag_core.pipeline.saved_network import SavedNetwork
from pag_core.pipeline.stage import OpenStage, run, stage

Found = dict[str, Any]
Curve = dict[str, list[tuple[int, float]]]
READS = ("dataset", "source", "own.function", "method", "baseline_method", "lambda", "source_defaults.${source}", "seed",
         "oi", "cm", "nn", "control", "pag_score.reference", "figures", "gradient_store.held_out_images")  # fmt: skip


def _pictured(params: Params) -> slice:
    """The test images shown: the first ones, of which the SBG store holds gradients."""
    return slice(0, min(params.figures.images, params.gradient_store.held_out_images))


def _sources(params: Params, dataset: Dataset) -> dict[str, TargetGradients]:
    """Every source that there is; the heuristic ones are computed here, because their stores may not have been built."""
    pictured, cpu = {"test": dataset.splits["test"].part(_pictured(params))}, torch.device("cpu")
    found: dict[str, TargetGradients] = {}
    for name, source in SOURCES.items():
        if name in (params.source, params.pag_score.reference) and source.store is None:
            title = known_as(str(params.own.function)).title if name == "own" else source.title
            found[title] = GradientStore(gradients_path(name)).gradients(dataset, "test", cpu)
        elif name != "none" and source.store is not None:
            found[source.title] = source.store(dataset, params, pictured).gradients(dataset, "test", cpu)
    return found


def _targeted(
    params: Params, dataset: Dataset, networks: dict[str, nn.Module], device: torch.device
) -> dict[str, torch.Tensor]:
    """The first test images attacked towards each class by the gradients of baseline and model."""
    images = dataset.splits["test"].pixels(_pictured(params)).to(device)
    ((norm, radius),) = params.figures.targeted_radius.items()
    return {
        name: targeted_images(
            networks[who],
            images,
            min(dataset.classes, MOST_CLASSES),
            norm=norm,
            radius=radius_value(radius),
            steps=params.figures.targeted_steps,
            batch_size=params.figures.batch_size,
        )
        for name, who in (
            (baseline_label(params.baseline_method), "baseline"),
            (label_of(params), "classifier"),
        )
    }


def _record(
    opened: OpenStage,
    dataset: Dataset,
    networks: dict[str, SavedNetwork],
    measured: dict[str, Found],
    curves: dict[str, Curve],
) -> Found:
    """What the figures are drawn from; raises ArtifactError where the parts are not of the same networks and parameters."""
    fingerprints = {who: saved.fingerprint for who, saved in networks.items()} | {"dataset": dataset.fingerprint}
    for who, command in (("classifier", "train.py"), ("baseline", "train.py --baseline")):
        if who not in curves:  # it was not trained here
            continue
        card, remedy = networks[who].card, f"run python stages/{command} again"
        require_of_now(classifier_path(who), card["provenance"], inputs={}, params=opened.all_params, remedy=remedy)
        if {name: curve[-1][1] for name, curve in curves[who].items()} != card.get("training"):
            raise ArtifactError(f"{curves_path(who)} is of another training than {classifier_path(who)}; {remedy}")
    autoattack = measured["autoattack"].get("provenance", {})
    for name, who, record in (
        ("masking", "classifier", measured["masking"].get("provenance")),
        ("masking", "baseline", measured["masking"].get("provenance")),
        ("autoattack", "classifier", autoattack.get("model")),
        ("autoattack", "baseline", autoattack.get("baseline")),
    ):
        inputs = {what: fingerprints[what] for what in ("dataset", who)}
        remedy = f"run dvc repro, or python stages/{name}.py again"
        require_of_now(details_path(name), record, inputs=inputs, params=opened.all_params, remedy=remedy)
    digests = {name: digest(details) for name, details in measured.items()}
    return {"params": opened.recorded, "inputs": fingerprints | digests}


def main() -> None:
    """Write the folder figures."""
    with stage("figures", reads=READS, memory="figures.batch_size") as opened:
        dataset = read_dataset(dataset_path(opened.params.dataset))
        params = count(opened, dataset)
        model = label_of(params)
        beside = baseline_label(params.baseline_method)
        test = dataset.splits["test"]
        rows = _pictured(params)
        ((norm, radius),) = params.figures.targeted_radius.items()
        measured = {name: read_json(details_path(name)) for name in ("masking", "autoattack")}
        trained = ("baseline",) if is_imported(params.classifier_checkpoint) else ("classifier", "baseline")
        curves = {who: read_curves(curves_path(who)) for who in trained}
        loaded = {
            who: load_classifier(measured_path(who, params.classifier_checkpoint), dataset, opened.device)
            for who in ("classifier", "baseline")
        }
        record = _record(opened, dataset, {who: saved for who, (_, saved) in loaded.items()}, measured, curves)
        figures = {
            "training_curves": training_curves(
                curves.get("classifier", {}),
                curves["baseline"],
                model=model,
                beside=beside,
                kept={
                    name: loaded[who][1].card["kept"]["epoch"]
                    for name, who in ((model, "classifier"), (beside, "baseline"))
                    if "kept" in loaded[who][1].card
                },
            ),
            "gradient_sources": gradient_sources(dataset, _sources(params, dataset), images=rows.stop),
            "targeted_pgd": targeted_pgd(
                test.pixels(rows),
                test.labels[rows],
                _targeted(params, dataset, {who: network for who, (network, _) in loaded.items()}, opened.device),
                class_names=dataset.class_names,
                norm=norm,
                radius=radius,
                steps=params.figures.targeted_steps,
            ),
            "robustness_radius": robustness_radius(
                measured["masking"], measured["autoattack"], model=model, beside=beside
            ),
        }
        with replacing_folder(FIGURES) as folder:
            for name, figure in figures.items():
                save_figure(figure, folder / f"{name}.png", record)


if __name__ == "__main__":
    run(main)

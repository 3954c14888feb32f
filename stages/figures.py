"""Draw the figures: training curves, target gradients by source, targeted images, accuracy against radius."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

import json

import torch

from pag_core.artifacts import replacing_folder
from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.device import prepare_device
from pag_core.evaluation.pgd import targeted_images
from pag_core.figures.gradient_sources import gradient_sources
from pag_core.figures.labels import BASELINE, SOURCE_NAMES, model_label
from pag_core.figures.palette import MOST_CLASSES, save_figure
from pag_core.figures.robustness_radius import robustness_radius
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.figures.training_curves import training_curves
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives
from pag_core.gradients.store import NeighbourGradients, RepresentativeGradients, TargetGradients, open_gradients
from pag_core.param_values import radius_value
from pag_core.params import Params, load_params
from pag_core.stage import run, stage
from pag_core.training.curves import read_curves


def _pictured(params: Params) -> slice:
    """The test images shown: the first ones, of which the SBG store holds gradients."""
    return slice(0, min(params.figures.images, params.gradient_store.held_out_images))


def _sources(params: Params, dataset: Dataset) -> dict[str, TargetGradients]:
    """Every source at hand; the heuristic ones are computed here, for their stores may not have been built."""
    train, test, classes = dataset.splits["train"], dataset.splits["test"], dataset.classes
    samples = class_samples(train, classes, samples_per_class=params.nn.samples_per_class, seed=params.seed)
    neighbours = nearest_neighbor_indices(test.images[_pictured(params)], train, samples).long()
    one_image = one_image_representatives(train, classes, seed=params.seed)
    class_mean = class_mean_representatives(train, classes, factor=params.cm.factor)
    sources: dict[str, TargetGradients] = {
        SOURCE_NAMES["oi"]: RepresentativeGradients(one_image, test),
        SOURCE_NAMES["cm"]: RepresentativeGradients(class_mean, test),
        SOURCE_NAMES["nn"]: NeighbourGradients(neighbours, test, train),
    }
    if "sbg" in (params.source, params.alignment.reference):
        store = Path("data/gradients/sbg.zarr")
        sources[SOURCE_NAMES["sbg"]] = open_gradients(store, dataset, "test", torch.device("cpu"))
    return sources


def _targeted(params: Params, dataset: Dataset, device: torch.device) -> dict[str, torch.Tensor]:
    """The first test images pushed towards each class by the gradients of baseline and model."""
    images = dataset.splits["test"].pixels(_pictured(params)).to(device)
    ((norm, radius),) = params.figures.targeted_radius.items()
    return {
        name: targeted_images(
            load_classifier(Path("data") / folder, dataset, device)[0],
            images,
            min(dataset.classes, MOST_CLASSES),
            norm=norm,
            radius=radius_value(radius),
            steps=params.figures.targeted_steps,
        )
        for name, folder in ((BASELINE, "baseline"), (model_label(params.source, params.weight), "classifier"))
    }


def main() -> None:
    """Write the folder figures."""
    with stage("figures"):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        model = model_label(params.source, params.weight)
        test = dataset.splits["test"]
        rows = _pictured(params)
        ((norm, radius),) = params.figures.targeted_radius.items()
        masking, autoattack = (
            json.loads(Path(f"metrics/{name}.json").read_text(encoding="utf-8")) for name in ("masking", "autoattack")
        )
        figures = {
            "training_curves": training_curves(
                read_curves(Path("curves/classifier")), read_curves(Path("curves/baseline")), model=model
            ),
            "gradient_sources": gradient_sources(dataset, _sources(params, dataset), images=rows.stop),
            "targeted_pgd": targeted_pgd(
                test.pixels(rows),
                test.labels[rows],
                _targeted(params, dataset, device),
                class_names=dataset.class_names,
                norm=norm,
                radius=radius,
                steps=params.figures.targeted_steps,
            ),
            "robustness_radius": robustness_radius(masking, autoattack, model=model),
        }
        with replacing_folder(Path("figures")) as folder:
            for name, figure in figures.items():
                save_figure(figure, folder / f"{name}.png")


if __name__ == "__main__":
    run(main)

"""Record the golden numbers: `python tests/golden/record.py` writes first_losses.json beside itself.

Run it only where a change of the numbers is meant, and say why in the commit.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pag_core.classifiers.building import build_classifier
from pag_core.compute.randomness import generator, seed_global_streams
from pag_core.datasets import digits
from pag_core.datasets.prepared import Dataset, Split
from pag_core.datasets.splits import split
from pag_core.diffusion.network import NoisePredictor, architecture, build_network
from pag_core.gradient_store.store import NeighborGradients, RepresentativeGradients
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives
from pag_core.objective.pag import AlignedBatch, drawn_classes, pag_objective, plain_objective
from pag_core.params.reading import load_params
from pag_core.params.sections import ObjectiveParams
from pag_core.pipeline.provenance import versions
from tests.fixtures.samples import PARAMS, content_fingerprint, distilled

PLACE = Path(__file__).with_name("first_losses.json")
SEED = 3407
# relative; other processors sum in another order
TOLERANCE = 1e-4
STEPS, BATCH, DRAWN, WEIGHT, RATE = 4, 32, 3, 3.0, 0.05


def digits_dataset():
    """The digits in the splits of the seed, without a file."""
    raw = digits.load()
    parts = split(raw, validation_fraction=0.15, test_fraction=0.28, images_per_class=None, seed=SEED)
    splits = {name: Split(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for name, part in parts.items()}
    return Dataset(raw.class_names, content_fingerprint(raw.class_names, parts), splits)


def untrained_predictor(dataset):
    """A U-Net of random weights, also where guided_diffusion starts at zero."""
    card = architecture(load_params(PARAMS).diffusion)
    card |= {
        "channels": 32,
        "channel_multipliers": [1, 1],
        "residual_blocks": 1,
        "timesteps": 1000,
        "schedule": "linear",
    }
    seed_global_streams(SEED, "golden predictor")
    network = build_network(card, dataset.image_shape, dataset.classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return NoisePredictor({**card, "class_names": list(dataset.class_names)}, network, torch.device("cpu"))


def sources(dataset):
    """The target gradients of each source for the training split, as callables of image and class indices."""
    train, classes = dataset.splits["train"], dataset.classes
    samples = class_samples(train, classes, samples_per_class=100, seed=SEED)
    neighbors = nearest_neighbor_indices(train, train, samples)
    return {
        "oi": RepresentativeGradients(one_image_representatives(train, classes, seed=SEED), train),
        "cm": RepresentativeGradients(class_mean_representatives(train, classes, factor=1.0), train),
        "nn": NeighborGradients(neighbors, train, train),
    }


def gradients(dataset):
    """For each source a few numbers of g(x, c) of training images 0 and 7, classes 3 and 8: a row of eight pixels."""
    images, class_indices = torch.tensor([0, 7]), torch.tensor([[3, 8], [3, 8]])
    found = {name: targets(images, class_indices) for name, targets in sources(dataset).items()}
    scored = distilled(
        untrained_predictor(dataset), dataset.splits["train"].pixels(images), generator("cpu", SEED, "golden noise"),
        draws=2, batch_size=1,
    )  # fmt: skip
    found["sbg"] = scored[:, [3, 8]]
    return {name: value[:, :, 0, 4].tolist() for name, value in found.items()}


def first_losses(dataset):
    """Cross-entropy, alignment and total of the first steps of plain SGD on each objective, with the class means."""
    train, targets = dataset.splits["train"], sources(dataset)["cm"]
    objectives = {"vanilla": None} | {
        f"{output} {scaling} {mode}": (output, scaling, mode)
        for output, scaling, mode in (
            ("log_softmax", "all", "adjoint"), ("log_softmax", "all", "autograd"), ("log_softmax", "drawn", "adjoint"),
            ("logit", "all", "adjoint"),
        )
    }  # fmt: skip
    losses = {}
    for name, options in objectives.items():
        seed_global_streams(SEED, "golden classifier")
        classifier = build_classifier(
            "small_resnet", width=8, activation=None, image_shape=dataset.image_shape, classes=dataset.classes
        )
        optimizer = torch.optim.SGD(classifier.parameters(), lr=RATE)
        draws, rows = generator("cpu", SEED, "golden draws"), []
        for step in range(STEPS):
            indices = torch.arange(step * BATCH, (step + 1) * BATCH)
            images, labels = train.pixels(indices), train.labels[indices]
            if options is None:
                terms = plain_objective(classifier, images, labels)
            else:
                output, scaling, mode = options
                drawn = drawn_classes(BATCH, dataset.classes, DRAWN, draws)
                form = ObjectiveParams(
                    output=output, scaling=scaling, differentiation=mode, batch_norm="repeat", classes_per_step="all",
                    weight_warmup=None,
                )  # fmt: skip
                batch = AlignedBatch(images, labels, drawn, targets(indices, drawn))
                terms = pag_objective(classifier, batch, form, lambda_=WEIGHT, classes=dataset.classes)
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            row = {"total": terms.total.item(), "cross_entropy": terms.classification.item()}
            rows.append(row if options is None else {**row, "alignment": terms.alignment.item()})
        losses[name] = rows
    return losses


def measured():
    """What the file holds beside its provenance."""
    dataset = digits_dataset()
    return {"dataset": dataset.fingerprint, "first_losses": first_losses(dataset), "gradients": gradients(dataset)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    content = {
        "made_by": "tests/golden/record.py",
        "seed": SEED,
        "versions": versions(),
        "relative_tolerance": TOLERANCE,
        **measured(),
    }
    PLACE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

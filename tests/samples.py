"""Small made-up inputs that several tests share."""

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from pag_core.datasets.labelled_images import LabelledImages
from pag_core.gradient_store.writer import GradientWriter, ShardContent, quantised
from pag_core.gradients.score_based import averaged_batches
from pag_core.objective.pag import AlignedBatch, pag_objective
from pag_core.params.sections import GradientStoreParams, ObjectiveParams, ScoreBasedParams
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.checkpoint import RunFolder

ROOT = Path(__file__).resolve().parents[1]
# no test reads what the user has set in params.yaml
PARAMS = ROOT / "tests/params.yaml"
MADE_FROM = {"diffusion model": "a" * 64}
# options that make each architecture quick, and the side of images that it then takes
ARCHITECTURES = {
    "small_resnet": ({"width": 4}, 8),
    "resnet18": ({}, 16),
    "wrn_34_10": ({"width": 1, "depth": 10}, 16),
    "vgg11": ({"width": 4}, 32),
    "vgg13": ({"width": 4}, 32),
    "vgg16": ({"width": 4}, 32),
    "vit": ({"width": 24, "depth": 2}, 16),
    "mixer": ({"width": 16, "depth": 2}, 16),
}
# what `make_folder` makes: sizes of images by split and class
FOLDER = {part: {"ant": [(6, 6)] * count, "bee": [(6, 6)] * count} for part, count in (("train", 3), ("test", 2))}


def plain_params():
    """The parameters of the tests as plain data, free to be changed."""
    return read_yaml(PARAMS.read_text(encoding="utf-8"))


def changed(content, changes):
    """A copy of `content` with values set by dotted key (`train.epochs`)."""
    content = copy.deepcopy(content)
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return content


def make_labelled(classes, per_class, shape, seed, *, centres_seed=0):
    """Images uint8 around a random pattern of their class, in shuffled order, all classes equally often."""
    centres = np.random.default_rng(centres_seed).uniform(50, 205, size=(classes, *shape))
    draws = np.random.default_rng(seed)
    labels = draws.permutation(np.repeat(np.arange(classes), per_class)).astype(np.int64)
    images = np.clip(np.rint(centres[labels] + draws.normal(0, 30, size=(len(labels), *shape))), 0, 255)
    return LabelledImages(images.astype(np.uint8), labels)


def sbg_params(**changes):
    options = {
        "timestep": 300,
        "draws": 1,
        "batch_size": 8,
        "precision": "float32",
        "min_cosine": 0.99,
        "compile": False,
    }
    return ScoreBasedParams(**{**options, **changes})


def distilled(predictor, images, noise_stream, **options):
    """All of `averaged_batches` in one."""
    batches = averaged_batches(predictor, images, sbg_params(**options), noise_stream=noise_stream)
    return torch.cat([gradients for _, gradients in batches])


def gaussian(count, classes=3, shape=(1, 8, 8), seed=0):
    draws = torch.Generator().manual_seed(seed)
    # magnitudes over six orders, as gradients of sure and unsure images have
    scale = 10.0 ** (6 * torch.rand(count, classes, 1, 1, 1, generator=draws) - 6)
    return scale * torch.randn(count, classes, *shape, generator=draws)


def write_dense(path, work, dataset, gradients, dtype="int8", inputs=MADE_FROM, skip=()):
    params = GradientStoreParams(
        address=None, classes_per_image=None, dtype=dtype, images_per_shard=8, images_per_chunk=4, held_out_images=1
    )
    writer = GradientWriter(work, dataset, images={name: len(part) for name, part in gradients.items()}, params=params)
    finished = {}
    for split, number, rows in writer.shards():
        if (split, number) in skip:
            continue
        finished |= writer.write_shard(split, rows, ShardContent(*quantised(gradients[split][rows], dtype)))
    writer.finish(path, "sbg", {"seed": 1, "inputs": inputs}, {"draw_cosine": 0.5}, finished)


def flip(path, position):
    whole = bytearray(path.read_bytes())
    whole[position] ^= 0x01
    path.write_bytes(whole)


def cosines(a, b):
    a, b = a.double().flatten(2), b.double().flatten(2)
    return (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))


class Killed(Exception):
    pass


class KilledFolder(RunFolder):
    """Saves `survive` checkpoints, then dies in place of the next."""

    def __init__(self, path, survive=1):
        super().__init__(path)
        self.survive = survive

    def save_checkpoint(self, state):
        if self.survive == 0:
            raise Killed
        super().save_checkpoint(state)
        self.survive -= 1


def labelled_images(model, count, side=4, seed=1):
    """Images in [0, 1] with the labels that `model` gives them."""
    images = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return images, model(images).argmax(1)


class Changed(nn.Module):
    """A model whose logits `change(logits, images)` replaces."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images):
        return self.change(self.model(images), images)


def objective_terms(
    classifier, images, labels, class_indices, targets, *, weight, classes, compiled=False, mask=None, target_norm=None,
    **form,
):  # fmt: skip
    """`pag_objective` with all classes of the batch given, and the other choices of `objective` by name."""
    batch = AlignedBatch(images, labels, class_indices, targets, mask, target_norm)
    chosen = ObjectiveParams(classes_per_step="all", weight_warmup=None, **form)
    return pag_objective(classifier, batch, chosen, lambda_=weight, classes=classes, compiled=compiled)


def save_png(path, seed=0):
    """A picture of 6x6 random pixels at `path`, whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)

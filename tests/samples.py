"""Small made-up inputs that several tests share."""

import copy
from pathlib import Path

import numpy as np

from pag_core.datasets.labelled_images import LabelledImages

ROOT = Path(__file__).resolve().parents[1]


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

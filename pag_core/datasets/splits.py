"""Train, validation and test splits; every choice of a parameter is made on the validation split."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from pag_core.compute.randomness import derived_seed
from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.errors import DatasetError

# not the run's: settings are chosen on the validation images of one seed, and no seed may test on those. The default of
# params.yaml, with which they were chosen
TEST_SPLIT_SEED = 3407


def split(
    raw: RawDataset, *, validation_fraction: float, test_fraction: float, images_per_class: int | None, seed: int
) -> dict[str, LabelledImages]:
    """The three splits, each in an order shuffled by `seed`, so that the first n images of one are a fair sample.

    `test_fraction` is used only where `raw` has no test split of its own; which images are in it does not depend on `seed`.
    Both divisions keep the proportions of the classes.
    Raises DatasetError if a class has too few images to be in every split.
    """
    train, test, names = raw.train, raw.test, raw.class_names
    if test is None:
        drawn = derived_seed(TEST_SPLIT_SEED, "test split")
        train, test = _divide(train, names, test_fraction, drawn, "prepare.test_fraction")
    if images_per_class is not None:
        train, test = (_capped(part, images_per_class) for part in (train, test))
    train, validation = _divide(
        train, names, validation_fraction, derived_seed(seed, "validation split"), "prepare.validation_fraction"
    )
    order = np.random.default_rng(derived_seed(seed, "test order")).permutation(len(test))
    return {"train": train, "validation": validation, "test": test.take(order)}


def _divide(
    whole: LabelledImages, class_names: Sequence[str], fraction: float, seed: int, name: str
) -> tuple[LabelledImages, LabelledImages]:
    indices = np.arange(len(whole))
    try:
        rest, part = train_test_split(indices, test_size=fraction, stratify=whole.labels, random_state=seed % 2**32)
    except ValueError as error:
        counts = np.bincount(whole.labels, minlength=len(class_names))
        smallest = f"{class_names[int(counts.argmin())]!r} with {counts.min()}"
        raise DatasetError(
            f"{len(whole)} images (smallest class: {smallest}) cannot be divided with {name}={fraction}: {error}"
        ) from error
    for taken in (rest, part):
        # stratification rounds small classes away without a word
        if absent := sorted(set(whole.labels.tolist()) - set(whole.labels[taken].tolist())):
            count = int((whole.labels == absent[0]).sum())
            raise DatasetError(
                f"{name}={fraction} leaves one of the splits without the class {class_names[absent[0]]!r}, which has {count} "
                "images; give it more images, or leave it out"
            )
    return whole.take(rest), whole.take(part)


def _capped(whole: LabelledImages, images_per_class: int) -> LabelledImages:
    kept = [np.flatnonzero(whole.labels == label)[:images_per_class] for label in range(int(whole.labels.max()) + 1)]
    return whole.take(np.sort(np.concatenate(kept)))

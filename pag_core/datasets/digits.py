"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, embedded in the library (no download)."""

import numpy as np
from sklearn.datasets import load_digits

from pag_core.datasets.labelled_images import LabelledImages, RawDataset


def load() -> RawDataset:
    """All images as uint8 [1797, 1, 8, 8]; the 17 grey levels 0 to 16 are spread over 0 to 255."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return RawDataset(
        class_names=tuple(str(name) for name in bunch.target_names),
        train=LabelledImages(images, bunch.target.astype(np.int64)),
        test=None,
    )

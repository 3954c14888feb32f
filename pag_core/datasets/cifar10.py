"""CIFAR-10 (Krizhevsky, 2009) through torchvision, which checks the archive against its published MD5."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
from torchvision.datasets import CIFAR10

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.errors import DatasetError


def load(root: Path) -> RawDataset:
    """50,000 training and 10,000 test images uint8 [N, 3, 32, 32], downloaded into `root` unless verified copies are there.

    Raises DatasetError if there is neither a verified copy nor a network.
    """
    try:
        parts = [CIFAR10(str(root), train=train, download=True) for train in (True, False)]
    except (URLError, RuntimeError, OSError) as error:
        raise DatasetError(
            f"CIFAR-10 is not in {root} and could not be downloaded and verified ({error}); "
            f"put cifar-10-python.tar.gz into {root}, or use dataset: image_folder"
        ) from error
    train, test = (
        LabelledImages(
            np.ascontiguousarray(np.asarray(part.data, dtype=np.uint8).transpose(0, 3, 1, 2)),
            np.asarray(part.targets, dtype=np.int64),
        )
        for part in parts
    )
    return RawDataset(class_names=tuple(parts[0].classes), train=train, test=test)

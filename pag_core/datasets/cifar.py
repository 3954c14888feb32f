"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): pickles in a .tar.gz, unpickled from an archive of the published MD5 alone."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.published_archive import PublishedArchive, tar_members


@dataclass(frozen=True)
class Cifar:
    """One of the two: its archive, the files in it, and their keys for labels and class names."""

    archive: PublishedArchive
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


CIFAR10 = Cifar(
    archive=PublishedArchive(
        dataset="CIFAR-10",
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        size=170_498_071,
        md5="c58f30108f718f92721af3b95e74349a",
    ),
    train=tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
    test="cifar-10-batches-py/test_batch",
    meta="cifar-10-batches-py/batches.meta",
    labels="labels",
    names="label_names",
)

CIFAR100 = Cifar(
    archive=PublishedArchive(
        dataset="CIFAR-100",
        address="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        size=169_001_437,
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    train=("cifar-100-python/train",),
    test="cifar-100-python/test",
    meta="cifar-100-python/meta",
    labels="fine_labels",
    names="fine_label_names",
)


def load(cifar: Cifar, downloads: Path) -> RawDataset:
    """50,000 training and 10,000 test images uint8 [N, 3, 32, 32], from the archive in the folder `downloads`.

    Of CIFAR-100 the 100 fine classes. Raises DatasetError if there is neither a verified archive nor a network.
    """
    with cifar.archive.opened(downloads) as file:
        content = tar_members(file, {*cifar.train, cifar.test, cifar.meta})
    # written by Python 2: latin1 is how its strings of bytes are read
    unpickled = {name: pickle.loads(pickled, encoding="latin1") for name, pickled in content.items()}
    return RawDataset(
        class_names=tuple(unpickled[cifar.meta][cifar.names]),
        train=_joined([unpickled[name] for name in cifar.train], cifar.labels),
        test=_joined([unpickled[cifar.test]], cifar.labels),
    )


def _joined(batches: list[dict[str, Any]], labels: str) -> LabelledImages:
    """Each batch has a row of 3 * 32 * 32 values for each image."""
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return LabelledImages(images, np.concatenate([np.asarray(batch[labels], dtype=np.int64) for batch in batches]))

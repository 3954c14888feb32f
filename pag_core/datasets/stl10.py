"""STL-10 (Coates et al., 2011): its labelled images of 96x96 pixels. The 100,000 unlabelled ones are not read."""

from pathlib import Path

import numpy as np

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.published_archive import PublishedArchive, tar_members

ARCHIVE = PublishedArchive(
    dataset="STL-10",
    address="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    size=2_640_397_119,
    md5="91f7769df0f17e558f3565bffb0c7dfb",
)
SIDE = 96
FOLDER = "stl10_binary"


def load(downloads: Path) -> RawDataset:
    """5,000 training and 8,000 test images uint8 [N, 3, 96, 96], from the archive in the folder `downloads`.

    Raises DatasetError if there is neither a verified archive nor a network.
    """
    names = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
    with ARCHIVE.opened(downloads) as file:
        content = tar_members(file, {f"{FOLDER}/{name}" for name in names})
    train_images, train_labels, test_images, test_labels, class_names = (content[f"{FOLDER}/{name}"] for name in names)
    return RawDataset(
        class_names=tuple(class_names.decode().split()),
        train=_split(train_images, train_labels),
        test=_split(test_images, test_labels),
    )


def _split(images: bytes, labels: bytes) -> LabelledImages:
    # each channel is stored column by column, and classes are numbered from 1
    stored = np.frombuffer(images, np.uint8).reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(
        np.ascontiguousarray(stored.transpose(0, 1, 3, 2)), np.frombuffer(labels, np.uint8).astype(np.int64) - 1
    )

"""Tiny ImageNet (Stanford's CS231n): 200 classes of ImageNet at 64x64 pixels, 500 training images each.

Its test split was published without labels, so its validation split, 50 images of each class, is the test split here, as it is
usual. The validation split of `prepare` is taken from the training images, as for every dataset.
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.published_archive import PublishedArchive
from pag_core.errors import DatasetError

ARCHIVE = PublishedArchive(
    dataset="Tiny ImageNet",
    address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    size=248_100_043,
    md5="90528d7ca1a48142e341f4ef8d21d0de",
)
SIDE = 64
FOLDER = "tiny-imagenet-200"


def load(downloads: Path) -> RawDataset:
    """100,000 training and 10,000 test images uint8 [N, 3, 64, 64], from the archive in the folder `downloads`.

    Classes are in the order of their WordNet ids and named by the first of their synonyms; grey images become RGB.
    Raises DatasetError if there is neither a verified archive nor a network.
    """
    with ARCHIVE.opened(downloads) as file, zipfile.ZipFile(file) as archive:
        ids = sorted(_text(archive, "wnids.txt").split())
        synonyms = dict(line.split("\t") for line in _text(archive, "words.txt").splitlines())
        label_of = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
        places = (re.fullmatch(rf"{FOLDER}/train/(\w+)/images/[^/]+\.JPEG", name) for name in archive.namelist())
        train = sorted((place[0], label_of[place[1]]) for place in places if place)
        annotations = (line.split("\t") for line in _text(archive, "val/val_annotations.txt").splitlines())
        test = [(f"{FOLDER}/val/images/{name}", label_of[wordnet_id]) for name, wordnet_id, *_ in annotations]
        return RawDataset(
            class_names=tuple(synonyms[wordnet_id].split(",")[0] for wordnet_id in ids),
            train=_read(archive, train),
            test=_read(archive, test),
        )


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(f"{FOLDER}/{name}").decode()


def _read(archive: zipfile.ZipFile, labelled: list[tuple[str, int]]) -> LabelledImages:
    images = np.empty((len(labelled), 3, SIDE, SIDE), np.uint8)
    for row, (name, _) in enumerate(labelled):
        try:
            with Image.open(io.BytesIO(archive.read(name)), formats=("JPEG",)) as image:
                images[row] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except Exception as error:  # the bytes are the published ones, but Pillow may be without JPEG
            raise DatasetError(
                f"{ARCHIVE.name}: {name} cannot be read as an image ({type(error).__name__}: {error}); install a Pillow that "
                "decodes JPEG"
            ) from error
    return LabelledImages(images, np.asarray([label for _, label in labelled], dtype=np.int64))

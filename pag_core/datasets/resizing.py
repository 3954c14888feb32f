"""The one resampling of all datasets: `prepare.image_size`."""

from dataclasses import replace

import numpy as np
from PIL import Image

from pag_core.datasets.labelled_images import LabelledImages, RawDataset


def square(image: Image.Image, side: int) -> Image.Image:
    """An image whose shorter side is scaled (bicubic, anti-aliased) to `side` pixels, and its centre cropped."""
    if image.size == (side, side):
        return image
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def at_size(raw: RawDataset, side: int | None) -> RawDataset:
    """The dataset with every image [C, H, W], C 1 or 3, as [C, side, side]; None leaves it as it is."""
    if side is None:
        return raw
    test = None if raw.test is None else _scaled(raw.test, side)
    return replace(raw, train=_scaled(raw.train, side), test=test)


def _scaled(part: LabelledImages, side: int) -> LabelledImages:
    count, channels = part.images.shape[:2]
    images = np.empty((count, channels, side, side), np.uint8)
    for row, pixels in enumerate(part.images):
        # PIL knows grey images without an axis of channels, and colour images with that axis last
        image = Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        images[row] = np.atleast_3d(np.asarray(square(image, side))).transpose(2, 0, 1)
    return LabelledImages(images, part.labels)

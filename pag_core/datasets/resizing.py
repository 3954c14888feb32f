"""The one resampling of all datasets: `prepare.image_size`."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pag_core.datasets.labelled_images import ImageSource, RawDataset


def square(image: Image.Image, side: int) -> Image.Image:
    """An image whose shorter side is scaled (bicubic, anti-aliased) to `side` pixels, and its centre cropped."""
    if image.size == (side, side):
        return image
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def at_size(raw: RawDataset, side: int | None) -> RawDataset:
    """The dataset with every image [C, H, W], C 1 or 3, as [C, side, side] once it is read; None leaves it as it is."""
    if side is None:
        return raw
    train, test = (
        None if part is None else replace(part, source=_Scaled(part.source, side)) for part in (raw.train, raw.test)
    )
    assert train is not None
    return replace(raw, train=train, test=test)


@dataclass(frozen=True)
class _Scaled:
    """The images of `source`, scaled as they are read."""

    source: NDArray[np.uint8] | ImageSource
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.source.shape[:2], self.side, self.side

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        whole = self.source[rows] if isinstance(self.source, np.ndarray) else self.source.read(rows)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for row, pixels in enumerate(whole):
            # PIL knows grey images without an axis of channels, and colour images with that axis last
            image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            images[row] = np.atleast_3d(np.asarray(square(image, self.side))).transpose(2, 0, 1)
        return images

"""A gradient store of synthetic gradients, made by the project's writer, for benchmarks of storing and feeding."""

from pathlib import Path

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import Dataset, Split, fingerprint
from pag_core.gradient_store.writer import GradientWriter, ShardContent, quantised
from pag_core.params.sections import GradientStoreParams

SEED = 3407
IMAGES_PER_SHARD = 512
IMAGES_PER_CHUNK = 16


def natural_gradients(count: int, classes: int, side: int, stream: int) -> torch.Tensor:
    """Random gradients float32 [count, classes, 3, side, side] whose amplitude falls with 1/frequency, as images' does."""
    draws = generator("cpu", SEED, "synthetic gradients", stream)
    noise = torch.randn(count, classes, 3, side, side, generator=draws)
    vertical, horizontal = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency = torch.sqrt(vertical**2 + horizontal**2).clamp_min(1 / side)
    gradients: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(side, side))
    return gradients


def synthetic_dataset(images: int, classes: int, side: int) -> Dataset:
    """Random colour images of balanced classes, all but one of each class in the training split."""
    draws = generator("cpu", SEED, "synthetic images")
    names = tuple(f"class {label}" for label in range(classes))
    splits, raw = {}, {}
    for name, count in (("train", images), ("validation", classes), ("test", classes)):
        pixels = torch.randint(256, (count, 3, side, side), generator=draws, dtype=torch.uint8)
        splits[name] = Split(pixels, torch.arange(count) % classes)
        raw[name] = LabelledImages(pixels.numpy(), splits[name].labels.numpy())
    return Dataset(names, fingerprint(names, raw), splits)


def write_synthetic_store(path: Path, dataset: Dataset, dtype: str) -> None:
    """Write a store of the training split; shard n holds `natural_gradients` of stream n."""
    params = GradientStoreParams.model_validate(
        {
            "address": None,
            "classes_per_image": None,
            "dtype": dtype,
            "images_per_shard": IMAGES_PER_SHARD,
            "images_per_chunk": IMAGES_PER_CHUNK,
            "held_out_images": 1,
        }
    )
    writer = GradientWriter(
        path.with_suffix(".work"), dataset, images={"train": len(dataset.splits["train"])}, params=params
    )
    finished = {}
    for split, number, rows in writer.shards():
        content = ShardContent(*quantised(shard_gradients(dataset, number, rows), dtype))
        finished.update(writer.write_shard(split, rows, content))
    writer.finish(path, "sbg", {"inputs": {}}, {}, finished)


def shard_gradients(dataset: Dataset, number: int, rows: slice) -> torch.Tensor:
    """The float32 gradients that shard `number` of images `rows` was made from."""
    return natural_gradients(rows.stop - rows.start, dataset.classes, dataset.image_shape[1], number)

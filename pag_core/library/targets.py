"""Target gradients by image and class: of a store, or of a heuristic source (Section 4.1) on plain tensors."""

from pathlib import Path
from typing import NamedTuple

import torch

from pag_core.datasets.prepared import Split, read_dataset
from pag_core.errors import ShapeMismatch, StoreError
from pag_core.gradient_store.feed import mapped_codes
from pag_core.gradient_store.store import STORED, GradientStore
from pag_core.gradient_store.targets import (
    DenseGradients,
    NeighborGradients,
    RepresentativeGradients,
    TargetGradients,
)
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives
from pag_core.library.user_data import as_split, in_255
from pag_core.objective.pag import drawn_classes


class Drawn(NamedTuple):
    """What `pag_loss` takes after images and labels: targets [B, K, C, H, W], their classes [B, K], and weights or None."""

    targets: torch.Tensor
    classes: torch.Tensor
    class_weights: torch.Tensor | None


class GradientTargets:
    """Target gradients g(x, c), up to a positive factor, of the images of one dataset, by index and class.

    `num_classes` is the number of classes; `kept_classes` int64 [N, k] those that a sparse store keeps of each image, its own
    first, None where there are all. `device` is where targets are made.
    """

    def __init__(
        self, gradients: TargetGradients, images: int, num_classes: int, device: torch.device, place: str
    ) -> None:
        self.gradients = gradients
        self.images = images
        self.num_classes = num_classes
        self.kept_classes = gradients.kept_classes
        self.device = device
        self.place = place

    def __len__(self) -> int:
        return self.images

    def __call__(self, indices: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """g(x, c) of images int64 [B] and `classes` int64 [B, K]: float32 [B, K, C, H, W].

        Without `classes` all that there are of an image: of every class, or of its row in `kept_classes`. Raises StoreError for
        an index or a class that there is not, ShapeMismatch for classes of another shape.
        """
        self._require_indices(indices)
        if classes is None:
            slots = torch.arange(self.gradients.slots(self.num_classes)).expand(len(indices), -1)
        else:
            slots = self._slots(indices, classes)
        return self._of(indices, slots)

    def draw(self, indices: torch.Tensor, count: int | None = None, generator: torch.Generator | None = None) -> Drawn:
        """`count` classes of each image int64 [B], at random among those that there are, or all (None), with their targets.

        Draws from `generator` on the CPU, by default torch's global one. Raises StoreError for more than there are.
        """
        self._require_indices(indices)
        slots = self.gradients.slots(self.num_classes)
        count = slots if count is None else count
        if not 1 <= count <= slots:
            raise StoreError(f"{count} classes cannot be drawn: {self.place} has 1 to {slots} of each image")
        chosen = drawn_classes(len(indices), slots, count, generator or torch.default_generator)
        classes = self.gradients.classes_of(indices.cpu(), chosen).to(self.device)
        weights = self.gradients.weights_of(chosen, self.num_classes)
        return Drawn(self._of(indices, chosen), classes, None if weights is None else weights.to(self.device))

    def _of(self, indices: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return self.gradients(indices.to(self.device), slots.to(self.device))

    def _slots(self, indices: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if classes.dim() != 2 or len(classes) != len(indices):
            raise ShapeMismatch(f"classes must be int64 [{len(indices)}, K], not {list(classes.shape)}")
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise StoreError(
                f"classes from {int(classes.min())} to {int(classes.max())} are asked for; {self.place} has 0 to "
                f"{self.num_classes - 1}"
            )
        if self.kept_classes is None:
            return classes
        found = self.kept_classes[indices.cpu()][:, None, :] == classes.cpu()[:, :, None]
        if not found.any(2).all():
            row, column = torch.nonzero(~found.any(2))[0].tolist()
            raise StoreError(
                f"{self.place} keeps {self.kept_classes.shape[1]} classes of an image, of image {int(indices[row])} not class "
                f"{int(classes[row, column])}; ask for those of kept_classes, or let draw() choose"
            )
        return found.int().argmax(2)

    def _require_indices(self, indices: torch.Tensor) -> None:
        if len(indices) and (indices.min() < 0 or indices.max() >= self.images):
            raise StoreError(
                f"{self.place} has images 0 to {self.images - 1}, asked for are {int(indices.min())} to {int(indices.max())}; "
                "indices are those of the dataset that it was made from"
            )


def open_targets(
    path: str | Path,
    *,
    split: str = "train",
    dataset: str | Path | None = None,
    device: torch.device | str = "cpu",
    memory_map: str | Path | None = None,
) -> GradientTargets:
    """The target gradients of a store: of `write_gradients`, or of the pipeline (data/gradients/SOURCE.zarr).

    Indices are those of the dataset that was given to `write_gradients`; in the pipeline's, of `split` (`train`, `test`) in
    data/DATASET.zarr, which `prepared_split` reads. With its path as `dataset` the store is refused if it was made from other
    images; stores of oi, cm and nn need it, for they hold no gradients. They are read into the memory of `device`;
    `memory_map`, a folder, keeps a raw copy instead, of which only what is asked for is read, on the CPU.
    Raises StoreError and DatasetError for what is missing, damaged or made from something else.
    """
    path, device = Path(path), torch.device(device)
    store = GradientStore(path)
    manifest = store.manifest
    classes = len(manifest["class_names"])
    prepared = None if dataset is None else read_dataset(Path(dataset))
    if prepared is not None:
        store.require_made_from(prepared)
    if manifest["kind"] not in STORED:
        if prepared is None:
            raise StoreError(f"{path} computes gradients from images; pass dataset=, the path of its data/DATASET.zarr")
        found = store.gradients(prepared, split, device)
        return GradientTargets(found, len(prepared.splits[split]), classes, device, str(path))
    if split not in manifest["images"]:
        raise StoreError(f"{path} has no gradients of the split {split!r}; it has {', '.join(manifest['images'])}")
    codes, scales, kept = store.stored(split)
    if memory_map is None:
        dense = DenseGradients(codes.resident(device), scales.resident(device), kept)
    else:
        device = torch.device("cpu")
        # by its content, for a copy of another store would be taken as it is
        copy = Path(memory_map) / f"{path.stem}-{split}-{manifest['checksum'][:20]}.raw"
        dense = DenseGradients(mapped_codes(codes, copy), scales.resident(device), kept)
    return GradientTargets(dense, manifest["images"][split], classes, device, str(path))


def one_image_targets(
    images: torch.Tensor, labels: torch.Tensor, *, of: torch.Tensor | None = None, seed: int = 0
) -> GradientTargets:
    """One Image (OI, Section 4.1): g(x, c) = r_c - x, of each class c one training image, drawn by `seed`.

    `images` [N, C, H, W], float in [0, 1] or uint8, and `labels` int64 [N] are those of training; the targets are of them, or
    of the images `of`. Raises DatasetError for images and labels that do not fit.
    """
    train, classes = as_split(images, labels)
    return _of_representatives(one_image_representatives(train, classes, seed=seed), train, of, "one_image_targets")


def class_mean_targets(
    images: torch.Tensor, labels: torch.Tensor, *, of: torch.Tensor | None = None, factor: float = 1.0
) -> GradientTargets:
    """Class Mean (CM, Section 4.1): g(x, c) = r_c - x, of each class c the mean training image times `factor`.

    Arguments and errors as of `one_image_targets`.
    """
    train, classes = as_split(images, labels)
    means = class_mean_representatives(train, classes, factor=factor)
    return _of_representatives(means, train, of, "class_mean_targets")


def nearest_neighbor_targets(
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    of: torch.Tensor | None = None,
    samples_per_class: int = 100,
    seed: int = 0,
) -> GradientTargets:
    """Nearest Neighbor (NN, Eq. 6): g(x, c) = r - x, of each class c the L2-nearest of a sample of the training images.

    Of each class `samples_per_class` are drawn by `seed`, as many as the smallest class has at most. Other arguments and errors
    as of `one_image_targets`.
    """
    train, classes = as_split(images, labels)
    samples = class_samples(train, classes, samples_per_class=samples_per_class, seed=seed)
    split = _split_of(train, of)
    nearest = nearest_neighbor_indices(split, train, samples)
    gradients = NeighborGradients(nearest, split, train)
    return GradientTargets(gradients, len(split), classes, images.device, "nearest_neighbor_targets")


def _split_of(train: Split, of: torch.Tensor | None) -> Split:
    # target gradients need no labels
    return train if of is None else Split(in_255(of.to(train.device)), train.labels[:0])


def _of_representatives(
    representatives: torch.Tensor, train: Split, of: torch.Tensor | None, place: str
) -> GradientTargets:
    split = _split_of(train, of)
    gradients = RepresentativeGradients(representatives, split)
    return GradientTargets(gradients, len(split), len(representatives), split.device, place)

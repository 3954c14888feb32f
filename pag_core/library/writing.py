"""Writing what any function gives as target gradients to a store, shard by shard, resumable."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from pag_core.compute.randomness import generator, seed_global_streams, streams_kept
from pag_core.datasets.prepared import Dataset, Split
from pag_core.errors import DatasetError, ShapeMismatch, StoreError
from pag_core.evaluation.preconditions import batches_of
from pag_core.gradient_store.store import GradientStore
from pag_core.gradient_store.writer import GradientWriter, ShardContent, quantised
from pag_core.gradients.distillation import require_kept_classes, stored_classes
from pag_core.library.options import checked_options
from pag_core.library.targets import GradientTargets, open_targets
from pag_core.library.user_data import require_pixels
from pag_core.params.sections import GradientStoreParams
from pag_core.pipeline.artifacts import digest, read_json, write_json
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.locks import holding
from pag_core.pipeline.loop import progress_bar
from pag_core.pipeline.provenance import provenance

# function(images, labels, classes): g(x, c) float [B, K, C, H, W] of images float [B, C, H, W] in [0, 1], labels int64 [B] and
# classes int64 [B, K]
GradientFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def write_gradients(
    folder: str | Path,
    dataset: Any,
    function: GradientFunction,
    *,
    num_classes: int,
    source: str = "own",
    classes_per_image: int | None = None,
    dtype: Literal["int8", "float16", "float32"] = "int8",
    batch_size: int = 64,
    images_per_shard: int = 512,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> GradientTargets:
    """Write g(x, c) of every image and class, as `function(images, labels, classes)` gives it, and open the store.

    `dataset` is map-style; its items begin with an image, uint8 or float in [0, 1], [C, H, W], and a label, and are the same
    whenever they are asked for. Its indices are those of the store. `function` gets batches on `device`, classes int64 [B, K],
    and returns float [B, K, C, H, W]; only directions count. `classes_per_image` keeps the own class and others drawn once.

    Finished shards of a killed run are kept, beside `folder`; each shard seeds the global generators from `seed`, so that the
    store does not depend on where a run was interrupted. `source` is the name of what `function` is: a store that was begun or
    finished under another name or with other options is refused (StoreError), as is a gradient that is not finite. Raises
    DatasetError for images of another range or form, ShapeMismatch for gradients of another shape, ParamsError for an option.
    """
    folder, device = Path(folder), torch.device(device)
    images = len(dataset)
    image, _ = _item(dataset, 0)
    described = Dataset(
        tuple(map(str, range(num_classes))),
        "",
        {"train": Split(torch.empty((images, *image.shape), dtype=torch.uint8, device="meta"), torch.empty(0))},
    )
    params = checked_options(
        GradientStoreParams,
        address=None,
        classes_per_image=classes_per_image,
        dtype=dtype,
        images_per_shard=images_per_shard,
        images_per_chunk=math.gcd(16, images_per_shard),
        held_out_images=1,
    )
    require_kept_classes(params, num_classes)
    options = {"source": source, "images": images, "image_shape": list(image.shape), "num_classes": num_classes,
               "batch_size": batch_size, "seed": seed, "gradient_store": params.model_dump(mode="json")}  # fmt: skip
    work = RunFolder(folder.with_name(f".{folder.name}.unfinished"))
    if folder.exists():
        return _finished(folder, options, device)
    with holding(work.path / "lock", f"writing {folder}"):
        if folder.exists():  # another process has just written it
            work.discard()
            return _finished(folder, options, device)
        begun = work.path / "options.json"
        if begun.exists():
            _require_same(work.path, read_json(begun), options)
        write_json(begun, options)
        _write(folder, work, dataset, function, described, params, options, device)
    return open_targets(folder, device=device)


def _write(
    folder: Path, work: RunFolder, dataset: Any, function: GradientFunction, described: Dataset,
    params: GradientStoreParams, options: dict[str, Any], device: torch.device,
) -> None:  # fmt: skip
    """Write what is missing of the store in `work`, and move it to `folder`."""
    images, seed = options["images"], options["seed"]
    writer = GradientWriter(work.path / "store", described, images={"train": images}, params=params)
    units = {}
    with progress_bar(folder.name, images, 0, "image") as bar, streams_kept(device):
        for _, number, rows in writer.shards():
            unit = work.load_unit(str(number))
            if unit is None or not writer.holds(unit["files"]):
                seed_global_streams(seed, "write gradients", number)
                content, fingerprint = _shard(dataset, function, rows, number, described, options, device)
                unit = {"files": writer.write_shard("train", rows, content), "images": fingerprint}
                work.save_unit(str(number), unit)
            units[number] = unit
            bar.update(rows.stop - rows.start)
    writer.dataset = replace(described, fingerprint=digest([unit["images"] for unit in units.values()]))
    record = provenance(params=options, seed=seed, inputs={}, device=device)
    files = {name: record for unit in units.values() for name, record in unit["files"].items()}
    writer.finish(folder, options["source"], record, {}, files)
    work.discard()


def _finished(folder: Path, options: dict[str, Any], device: torch.device) -> GradientTargets:
    _require_same(folder, GradientStore(folder).manifest["provenance"]["params"], options)
    return open_targets(folder, device=device)


def _shard(
    dataset: Any, function: GradientFunction, rows: slice, number: int, described: Dataset, options: dict[str, Any],
    device: torch.device,
) -> tuple[ShardContent, str]:  # fmt: skip
    """The gradients of the images `rows`, and the SHA-256 of these images and their labels."""
    images, labels = _read(dataset, rows, described)
    store, classes = options["gradient_store"], described.classes
    kept, dtype = store["classes_per_image"], store["dtype"]
    chosen = torch.arange(classes).repeat(len(images), 1)
    if kept is not None:
        draws = generator("cpu", options["seed"], "kept classes", "train", number)
        chosen = stored_classes(labels, classes, kept, draws)
    codes = torch.empty(*chosen.shape, *images.shape[1:], dtype=getattr(torch, dtype))
    scales = torch.empty(chosen.shape)
    for part in batches_of(len(images), options["batch_size"]):
        gradients = function(images[part].to(device), labels[part].to(device), chosen[part].to(device))
        if gradients.shape != codes[part].shape:
            raise ShapeMismatch(
                f"the function returns {list(gradients.shape)} for {chosen.shape[1]} classes of images "
                f"{list(images[part].shape)}; it must be {list(codes[part].shape)}"
            )
        for whole, found in zip((codes, scales), quantised(gradients.detach().float(), dtype), strict=True):
            whole[part] = found.cpu()
    content = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    return ShardContent(codes, scales, None if kept is None else chosen), content


def _read(dataset: Any, rows: slice, described: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """The images `rows`, float32 [N, C, H, W] in [0, 1], and labels int64 [N]; raises DatasetError for one that differs."""
    images, labels = [], []
    for index in range(rows.start, rows.stop):
        image, label = _item(dataset, index)
        if image.shape != described.image_shape or not 0 <= label < described.classes:
            raise DatasetError(
                f"item {index} is an image {list(image.shape)} of label {label}; all must be {list(described.image_shape)} "
                f"with labels from 0 to {described.classes - 1}"
            )
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _item(dataset: Any, index: int) -> tuple[torch.Tensor, int]:
    image, label = dataset[index][:2]
    if not isinstance(image, torch.Tensor) or image.dim() != 3:
        found = list(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise DatasetError(
            f"the image of item {index} is {found}, not a tensor [C, H, W]; give the dataset a transform that makes one"
        )
    require_pixels(image)
    return image / 255 if image.dtype == torch.uint8 else image.float(), int(label)


def _require_same(place: Path, found: dict[str, Any], options: dict[str, Any]) -> None:
    if differing := [name for name, value in options.items() if found.get(name) != value]:
        name = differing[0]
        raise StoreError(
            f"{place} was made with {name} {found.get(name)}, and now it is {options[name]}; remove it, or choose another "
            "folder"
        )

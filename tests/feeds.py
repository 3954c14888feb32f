"""A small store of score-based gradients, its ways into the training, and its rows as Zarr has them."""

import numpy as np
import torch
import zarr

from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.store import GradientStore
from pag_core.params.sections import FeedParams
from pag_core.pipeline.checkpoint import RunFolder
from tests.samples import MADE_FROM, gaussian, write_dense

CPU = torch.device("cpu")


def feed_params(mode="auto", budget_gb=None, window_shards=2):
    if mode == "window":
        return FeedParams(mode="auto", budget_gb=budget_gb, window_shards=window_shards)
    return FeedParams(mode=mode, budget_gb=budget_gb, window_shards=None)


def store_at(path, dataset, dtype="int8", seed=0):
    """36 training images in shards of 8, the last of 4."""
    gradients = {"train": gaussian(36, seed=seed), "test": gaussian(10, seed=1)}
    write_dense(path, path.with_name(f"work-{path.name}"), dataset, gradients, dtype)
    return path


def folder_at(path):
    """The folder of a run, whose cache lies beside it."""
    folder = path / "cache" / "classifier-1234"
    folder.mkdir(parents=True)
    return RunFolder(folder)


def opened(store, dataset, folder, mode, **options):
    params = feed_params(mode, **options)
    return open_feed(GradientStore(store), dataset, CPU, params=params, folder=folder, inputs=MADE_FROM)


def by_zarr(store, image_indices, class_indices):
    """Rows read one by one from Zarr, dequantised by numpy."""
    root = zarr.open_group(store, mode="r")
    codes, scales = np.asarray(root["train/gradient"]), np.asarray(root["train/scale"])
    return np.stack([
        [codes[image, label].astype(np.float32) * scales[image, label] for label in labels]
        for image, labels in zip(image_indices.tolist(), class_indices.tolist(), strict=True)
    ])  # fmt: skip

"""Distillation of score-based gradients into a dense store, shard by shard, resumable."""

from pathlib import Path
from typing import Any

from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Dataset
from pag_core.diffusion.network import NoisePredictor
from pag_core.gradients.manifest import file_record
from pag_core.gradients.score_based import averaged_score_based_gradients
from pag_core.gradients.store import DenseStoreWriter
from pag_core.loop import progress_bar
from pag_core.params import GradientStoreParams, ScoreBasedParams
from pag_core.randomness import generator


def distill(
    path: Path,
    predictor: NoisePredictor,
    dataset: Dataset,
    *,
    sbg: ScoreBasedParams,
    store: GradientStoreParams,
    seed: int,
    folder: RunFolder,
    made_from: dict[str, str],
    provenance: dict[str, Any],
    measured: dict[str, float],
) -> None:
    """Write g(x, c) of Eq. 8 for every training image, and for the first held-out test images, to the store `path`.

    Each shard draws its noise from a stream of its own, so the store does not depend on where the work was broken off.
    Finished shards of a killed run are kept.
    """
    images = {"train": len(dataset.splits["train"]), "test": min(store.held_out_images, len(dataset.splits["test"]))}
    writer = DenseStoreWriter(
        folder.path / "store",
        dataset,
        images=images,
        dtype=store.dtype,
        images_per_shard=store.images_per_shard,
        images_per_chunk=store.images_per_chunk,
    )
    device = predictor.device
    splits = {name: dataset.splits[name].to(device) for name in images}
    finished: dict[str, dict[str, Any]] = {}
    with progress_bar("distillation", sum(images.values()), 0, "image") as bar:
        for split, number, rows in writer.shards():
            unit = f"{split}-{number}"
            records = folder.load_unit(unit)
            if records is None or not all(
                _as_recorded(writer.folder / name, record) for name, record in records.items()
            ):
                gradients = averaged_score_based_gradients(
                    predictor,
                    splits[split].pixels(rows),
                    timestep=sbg.timestep,
                    draws=sbg.draws,
                    batch_size=sbg.batch_size,
                    noise_stream=generator(device, seed, "distillation", split, number),
                )
                writer.write_shard(split, rows, gradients)
                records = {name: file_record(writer.folder / name) for name in writer.files_of(split, number)}
                folder.save_unit(unit, records)
            finished.update(records)
            bar.update(rows.stop - rows.start)
    writer.finish(path, "sbg", made_from, provenance, measured, finished)


def _as_recorded(path: Path, record: dict[str, Any]) -> bool:
    """Whether a shard of an earlier run is still what was written."""
    return path.exists() and file_record(path) == record

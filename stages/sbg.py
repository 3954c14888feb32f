"""Distill score-based gradients (Section 4.2, Eq. 8) from the diffusion model into a store."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from typing import Annotated, Any

import typer

from pag_core.compute.processes import this_process
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.diffusion.network import NoisePredictor, load_noise_predictor, require_trained_for
from pag_core.gradients.distillation import (
    Distillation,
    distill,
    distilling_processes,
    require_kept_classes,
    shards_of,
)
from pag_core.gradients.distillation_precision import direction_check, in_precision, require_direction
from pag_core.gradients.label_effect import label_effect, over_levels, require_label_effect
from pag_core.gradients.score_based import ScoreBased
from pag_core.params.sections import Params
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.paths import METRICS, dataset_path, gradients_path
from pag_core.pipeline.stage import run, stage


def _measured(
    params: Params, predictor: NoisePredictor, teacher: NoisePredictor, dataset: Dataset, metrics: str
) -> dict[str, Any]:
    """Write the metrics; raise where the label does nothing, or where `teacher`'s precision turns gradients.

    Each noise level is measured by itself.
    """
    validation, options = dataset.splits["validation"], {"batch_size": params.sbg.batch_size, "seed": params.seed}
    precision = params.sbg.precision
    levels = []
    for timestep in params.sbg.timesteps:
        measured = label_effect(predictor, validation, timestep=timestep, **options)
        if precision != "float32":
            checked = direction_check(predictor, teacher, validation, timestep=timestep, **options)
            print(
                f"{precision} against float32 on {checked['precision_images']} images: mean cosine "
                f"{checked['precision_cosine_mean']:.6f}, lowest {checked['precision_cosine_min']:.6f}; |difference| / |eps| "
                f"{checked['precision_difference_ratio']:.4f}",
                flush=True,
            )
            measured |= checked
        levels.append(measured)
    summary = over_levels(levels)
    write_json(METRICS / metrics, summary)
    for timestep, measured in zip(params.sbg.timesteps, levels, strict=True):
        require_label_effect(measured, f"{params.diffusion_checkpoint} at t = {timestep}")
        if precision != "float32":
            require_direction(measured, precision, params.sbg.min_cosine)
    return summary


def main(
    online: Annotated[
        bool, typer.Option("--online", help="For source sbg_online: keep the model, and distill held-out images only.")
    ] = False,
) -> None:
    """Write data/gradients/sbg.zarr (or sbg_online.zarr) and its metrics; a model that ignores its label is refused."""
    source = "sbg_online" if online else "sbg"
    reads = ("dataset", "seed", "diffusion_checkpoint", "sbg", "gradient_store")
    with stage(source, reads=reads, shared=True, memory="sbg.batch_size") as opened:
        params = opened.params
        dataset = read_dataset(dataset_path(params.dataset))
        require_kept_classes(params.gradient_store, dataset.classes)
        checkpoint = Path(params.diffusion_checkpoint)
        predictor, saved = load_noise_predictor(checkpoint, dataset, opened.device)
        require_trained_for(params.sbg.timesteps, predictor.card, checkpoint)
        if saved.card["dataset"] is None:
            print(f"{checkpoint} comes from elsewhere: the images that it was trained on are not known")
        elif saved.card["dataset"] != dataset.fingerprint:
            print(
                f"{checkpoint} was trained on other images of the same classes (fingerprint {saved.card['dataset'][:12]})"
            )
        compiled_for = dataset.image_shape if params.sbg.compile else None
        teacher = in_precision(predictor, precision=params.sbg.precision, compiled_for=compiled_for)
        work = Distillation(params.gradient_store, params.seed, checkpoint if online else None)
        processes = distilling_processes(params.processes, opened.device, len(shards_of(dataset, work)))
        opened.divide_cores(processes)
        # the other ranks take over shards of a model that was already checked
        metrics = "diffusion_online.json" if online else "diffusion.json"
        measured = _measured(params, predictor, teacher, dataset, metrics) if this_process().leads else {}
        provenance = opened.provenance(inputs={"dataset": dataset.fingerprint, "diffusion model": saved.fingerprint})
        with run_folder(source, provenance, opened.device) as folder:
            distill(
                gradients_path(source),
                ScoreBased(teacher, params.sbg),
                dataset,
                work,
                source=source,
                folder=folder,
                provenance=provenance,
                measured=measured,
                processes=processes,
            )


if __name__ == "__main__":
    run(main)

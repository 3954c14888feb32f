"""Distill score-based gradients (Section 4.2, Eq. 8) from the diffusion model into a store."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.compute.processes import this_process
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.diffusion.network import NoisePredictor, load_noise_predictor
from pag_core.errors import ParamsError
from pag_core.gradients.distillation import Distillation, distill
from pag_core.gradients.distillation_precision import direction_check, in_precision, require_direction
from pag_core.gradients.label_effect import label_effect, require_label_effect
from pag_core.params.sections import Params
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.places import METRICS, dataset_place, gradients_place
from pag_core.pipeline.stage import run, stage


def _measured(params: Params, predictor: NoisePredictor, teacher: NoisePredictor, dataset: Dataset) -> dict[str, float]:
    """Write metrics/diffusion.json; raise where the label does nothing, or where `teacher`'s precision turns gradients."""
    validation, options = dataset.splits["validation"], {"timestep": params.sbg.timestep, "seed": params.seed}
    measured = label_effect(predictor, validation, batch_size=params.sbg.batch_size, **options)
    precision = params.sbg.precision
    if precision != "float32":
        checked = direction_check(predictor, teacher, validation, batch_size=params.sbg.batch_size, **options)
        print(
            f"{precision} against float32 on {checked['precision_images']} images: mean cosine "
            f"{checked['precision_cosine_mean']:.6f}, lowest {checked['precision_cosine_min']:.6f}; |difference| / |eps| "
            f"{checked['precision_difference_ratio']:.4f}",
            flush=True,
        )
        measured |= checked
    write_json(METRICS / "diffusion.json", measured)
    require_label_effect(measured, params.diffusion_checkpoint)
    if precision != "float32":
        require_direction(measured, precision, params.sbg.min_cosine)
    return measured


def main() -> None:
    """Write data/gradients/sbg.zarr and metrics/diffusion.json; a model that ignores its label is refused."""
    with stage("sbg", shared=True) as opened:
        params = opened.params
        dataset = read_dataset(dataset_place(params.dataset))
        checkpoint = Path(params.diffusion_checkpoint)
        predictor, saved = load_noise_predictor(checkpoint, dataset, opened.device)
        low, high = predictor.timesteps
        if not low <= params.sbg.timestep <= high:
            raise ParamsError(
                f"params.yaml: sbg.timestep is {params.sbg.timestep}, {checkpoint} was trained for timesteps {low} to {high}"
            )
        if saved.card["dataset"] != dataset.fingerprint:
            print(
                f"{checkpoint} was trained on other images of the same classes (fingerprint {saved.card['dataset'][:12]})"
            )
        compiled_for = dataset.image_shape if params.sbg.compile else None
        teacher = in_precision(predictor, precision=params.sbg.precision, compiled_for=compiled_for)
        # companions take over shards of a model that was already checked
        measured = _measured(params, predictor, teacher, dataset) if this_process().leads else {}
        provenance = opened.provenance(
            "sbg", "gradient_store", inputs={"dataset": dataset.fingerprint, "diffusion model": saved.fingerprint}
        )
        with run_folder("sbg", provenance, opened.device) as folder:
            distill(
                gradients_place("sbg"),
                teacher,
                dataset,
                Distillation(params.sbg, params.gradient_store, params.seed),
                folder=folder,
                provenance=provenance,
                measured=measured,
                processes=params.processes,
            )


if __name__ == "__main__":
    run(main)

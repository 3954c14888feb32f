"""Distill score-based gradients (Section 4.2, Eq. 8) from the diffusion model into a store."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from pag_core.artifacts import write_json
from pag_core.checkpoint import run_folder
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.device import prepare_device
from pag_core.diffusion.network import NoisePredictor, load_noise_predictor
from pag_core.errors import ParamsError
from pag_core.gradients.distillation import distill
from pag_core.gradients.label_effect import label_effect, require_label_effect
from pag_core.gradients.precision import direction_check, in_precision, require_direction
from pag_core.params import Params, load_params
from pag_core.processes import this_process
from pag_core.provenance import provenance
from pag_core.stage import run, stage


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
    write_json(Path("metrics/diffusion.json"), measured)
    require_label_effect(measured, params.diffusion_checkpoint)
    if precision != "float32":
        require_direction(measured, precision, params.sbg.min_cosine)
    return measured


def main() -> None:
    """Write data/gradients/sbg.zarr and metrics/diffusion.json; a model that ignores its label is refused."""
    with stage("sbg", shared=True):
        params = load_params()
        device = prepare_device(params.device, params.threads)
        dataset = read_dataset(Path("data") / f"{params.dataset}.zarr")
        checkpoint = Path(params.diffusion_checkpoint)
        predictor, saved = load_noise_predictor(checkpoint, dataset, device)
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
        made_from = {"diffusion model": saved.fingerprint}
        origin = provenance(
            params=params.section("sbg", "gradient_store"),
            seed=params.seed,
            inputs={"dataset": dataset.fingerprint, **made_from},
            device=device,
        )
        with run_folder("sbg", {"params": origin["params"], "seed": params.seed, **origin["inputs"]}, device) as folder:
            distill(
                Path("data/gradients/sbg.zarr"),
                teacher,
                dataset,
                sbg=params.sbg,
                store=params.gradient_store,
                seed=params.seed,
                folder=folder,
                made_from=made_from,
                provenance=origin,
                measured=measured,
                processes=params.processes,
            )


if __name__ == "__main__":
    run(main)

"""A diffusion model that others trained as a `diffusion_checkpoint`: `python -m pag_core.exchange.import_diffusion`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pag_core.datasets.labelled_images import listed_classes
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.diffusion.network import KIND, NoisePredictor
from pag_core.errors import ArtifactError, ParamsError, WeightsError
from pag_core.exchange.diffusion_checkpoint import fitted_network, inferred_config, read_checkpoint, with_no_class_last
from pag_core.gradients.label_effect import label_effect, require_label_effect
from pag_core.pipeline.artifacts import file_digest
from pag_core.pipeline.paths import DATA, dataset_path
from pag_core.pipeline.saved_network import save_network
from pag_core.pipeline.stage import OpenStage, run, stage


def _require_size(stated: int, dataset: Dataset, checkpoint: Path) -> None:
    _, height, width = dataset.image_shape
    if (height, width) != (stated, stated):
        raise WeightsError(
            f"{checkpoint} was trained on images of {stated}x{stated} pixels, and the dataset has {height}x{width}: its noise "
            "level and features belong to its own size. Use a model of the dataset's size, or for an image_folder set "
            f"prepare.image_size: {stated}"
        )


def _measured(
    opened: OpenStage, predictor: NoisePredictor, dataset: Dataset, checkpoint: Path
) -> list[dict[str, float]]:
    """Errors on validation images with the right label, without one and with a wrong one; raises where they say no good.

    One for each noise level of `sbg.timestep`.
    """
    return [_measured_at(timestep, opened, predictor, dataset, checkpoint) for timestep in opened.params.sbg.timesteps]


def _measured_at(
    timestep: int, opened: OpenStage, predictor: NoisePredictor, dataset: Dataset, checkpoint: Path
) -> dict[str, float]:
    params = opened.params
    if timestep >= predictor.card["timesteps"]:
        raise ParamsError(
            f"params.yaml: sbg.timestep is {timestep}, beyond the {predictor.card['timesteps']} of the model"
        )
    measured = label_effect(
        predictor, dataset.splits["validation"], timestep=timestep, batch_size=params.sbg.batch_size, seed=params.seed
    )
    for name, value in measured.items():
        print(f"{name}: {value:g}", flush=True)
    if not measured["held_out_error_conditional"] < 1:
        raise WeightsError(
            f"{checkpoint} predicts the noise of timestep {timestep} worse than a prediction of zero, whose error is 1: an "
            "option is not the one that it was trained with (--heads, --schedule, --timesteps), or it does not predict noise"
        )
    require_label_effect(measured, f"{checkpoint} at t = {timestep}")
    return measured


def import_diffusion(
    opened: OpenStage,
    checkpoint: Path,
    folder: Path,
    options: dict[str, Any],
    *,
    image_size: int,
    no_class: int | None,
    weights: str | None,
) -> None:
    """Write the checkpoint with its card to `folder`, whole or not at all, once its labels are known to matter.

    `options` are those parts of the card that are not in the file. Raises WeightsError for a file that does not fit.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: remove it, or import to another folder")
    dataset = read_dataset(dataset_path(opened.params.dataset))
    _require_size(image_size, dataset, checkpoint)
    read = read_checkpoint(checkpoint, weights)
    print(f"weights: {f'those under {read.prefix}' if read.prefix else 'the whole file'}", flush=True)
    if read.left_out:
        print(f"left out: {', '.join(read.left_out)}", flush=True)
    tensors = with_no_class_last(read.tensors, dataset.classes, no_class, str(checkpoint))
    # dropout is off in a trained model
    config = inferred_config(tensors, image_size, str(checkpoint))
    config |= {"dropout": 0.0, "timestep_window": None, **options}
    print("\n".join(f"{key}: {value}" for key, value in config.items()), flush=True)
    names = list(dataset.class_names)
    print(f"labels 0 to {len(names)}, as assumed: {listed_classes(names)}, no class", flush=True)
    network = fitted_network(config, tensors, dataset.image_shape, str(checkpoint))
    predictor = NoisePredictor({**config, "class_names": names}, network, opened.device)
    measured = _measured(opened, predictor, dataset, checkpoint)
    inputs = {"checkpoint": file_digest(checkpoint), "dataset": dataset.fingerprint}
    card = {
        "kind": KIND,
        "architecture": config,
        "class_names": names,
        "image_shape": list(dataset.image_shape),
        "dataset": None,  # it does not say which images it was trained on
        "measured": measured,
        "provenance": opened.provenance(inputs=inputs)
        | {"file": checkpoint.name, "weights": read.prefix, "no_class": no_class},
    }
    save_network(folder, tensors, card)


def main(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="model*.pt or ema_*.pt of guided_diffusion or improved-diffusion, or a file that holds it."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder, for diffusion_checkpoint.")] = DATA / "pretrained",
    *,
    image_size: Annotated[int, typer.Option(help="Pixels a side that it was trained on; the file does not say.")],
    timesteps: Annotated[int, typer.Option(min=2, help="Its --diffusion_steps.")] = 1000,
    schedule: Annotated[Literal["linear", "cosine"], typer.Option(help="Its --noise_schedule.")] = "linear",
    heads: Annotated[int, typer.Option(min=1, help="Its --num_heads.")] = 4,
    head_channels: Annotated[
        int | None, typer.Option(min=1, help="Its --num_head_channels, in place of heads.")
    ] = None,
    new_attention_order: Annotated[
        bool, typer.Option("--new-attention-order", help="Trained with --use_new_attention_order True.")
    ] = False,
    rescale_timesteps: Annotated[
        bool, typer.Option(help="Its --rescale_timesteps; says nothing at 1000 timesteps.")
    ] = True,
    no_class: Annotated[
        int | None, typer.Option(min=0, help="The label that means no class; the last unless given.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which network of a file that holds several: how the names of its tensors begin.")
    ] = None,
) -> None:
    """Take a diffusion model of C+1 labels from elsewhere, and measure on validation images whether its labels do anything."""
    with stage("import_diffusion", reads=("dataset", "seed", "sbg"), memory="sbg.batch_size") as opened:
        options = {
            "timesteps": timesteps,
            "schedule": schedule,
            "attention_heads": heads,
            "head_channels": head_channels,
            "new_attention_order": new_attention_order,
            "rescale_timesteps": rescale_timesteps,
        }
        import_diffusion(opened, checkpoint, folder, options, image_size=image_size, no_class=no_class, weights=weights)
        print(f"{folder}: run with -S diffusion_checkpoint={folder}", flush=True)


if __name__ == "__main__":
    run(main)

"""A classifier that others trained as a `classifier_checkpoint`: `python -m pag_core.exchange.import_classifier`."""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.building import save_classifier
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.datasets.labelled_images import listed_classes
from pag_core.datasets.prepared import Dataset, Split, read_dataset
from pag_core.errors import ArtifactError, ParamsError, WeightsError
from pag_core.evaluation.preconditions import batches_of, correct
from pag_core.exchange.classifier_checkpoint import read_weights
from pag_core.params.reading import parse_params
from pag_core.params.sections import ClassifierParams
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.artifacts import file_digest
from pag_core.pipeline.code_identity import own_code_inputs
from pag_core.pipeline.paths import DATA, dataset_path
from pag_core.pipeline.stage import OpenStage, run, stage

Values = tuple[float, ...]
# what a network may have been trained with instead, by what it is
OTHERS: dict[str, tuple[Values, Values]] = {
    "none: pixels in [0, 1]": ((0.0,), (1.0,)),
    "pixels in [-1, 1]": ((0.5,), (0.5,)),
    "pixels in [0, 255]": ((0.0,), (1 / 255,)),
    "that of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "that of CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
# standard errors by which one count must exceed another to be taken for better
MARGIN = 3


def parsed_values(text: str, channels: int, option: str) -> Values:
    """The numbers of `--mean` or `--std`, one or one for each channel, as one for each; raises ParamsError for others."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParamsError(f"{option} {text!r} is not a number, or one for each channel as 0.49,0.48,0.45") from None
    if len(values) not in (1, channels):
        raise ParamsError(f"{option} {text!r} has {len(values)} numbers; the images have {channels} channels")
    if not all(map(math.isfinite, values)) or (option == "--std" and min(values) <= 0):
        raise ParamsError(f"{option} {text!r} must be finite, and a standard deviation above 0")
    if max(map(abs, values)) > 1:
        scaled = ",".join(f"{value / 255:.4g}" for value in values)
        raise ParamsError(
            f"{option} {text!r} is of pixels in [0, 255], and images here are in [0, 1]: divide by 255, {option} {scaled}"
        )
    return values * (channels // len(values))


def set_normalization(classifier: NormalizedClassifier, mean: Values, deviation: Values) -> None:
    """Give `classifier` mean and standard deviation of pixels in [0, 1], one for all channels or one for each."""
    for buffer, values in ((classifier.mean, mean), (classifier.deviation, deviation)):
        buffer.copy_(torch.tensor(values).view(1, -1, 1, 1).expand_as(buffer))


def hits(classifier: NormalizedClassifier, split: Split, batch_size: int) -> torch.Tensor:
    """Which images of `split` are classified correctly: bool [N] on the CPU."""
    parts = [
        correct(classifier, split.pixels(rows), split.labels[rows], batch_size=batch_size)
        for rows in batches_of(len(split), batch_size)
    ]
    return torch.cat(parts).cpu()


def better_normalization(
    classifier: NormalizedClassifier, split: Split, given: tuple[Values, Values], right: torch.Tensor, batch_size: int
) -> str | None:
    """Of `OTHERS` the one with which clearly more images are classified correctly than the `right` of `given`, in words.

    It is tried, and `classifier` left with what is `given`.
    """
    best, gain = None, 0.0
    for name, other in OTHERS.items():
        if len(other[0]) not in (1, split.image_shape[0]):
            continue
        set_normalization(classifier, *other)
        now = hits(classifier, split, batch_size)
        difference = now.double() - right.double()
        if difference.sum() > max(gain, MARGIN * float(difference.square().sum()) ** 0.5):
            mean, deviation = (",".join(f"{value:.4g}" for value in values) for values in other)
            best, gain = (
                f"{name} (--mean {mean} --std {deviation}) gives {now.double().mean():.1%}",
                float(difference.sum()),
            )
    set_normalization(classifier, *given)
    return best


def import_classifier(
    opened: OpenStage,
    checkpoint: Path,
    folder: Path,
    *,
    arch: str,
    options: str,
    mean: str,
    deviation: str,
    accuracy: float | None,
    weights: str | None,
) -> None:
    """Write the checkpoint with its card to `folder`, whole or not at all, once it is known to fit the dataset.

    Raises WeightsError for a file that does not, and where validation images are classified far worse than `accuracy`.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already: remove it, or import to another folder")
    dataset = read_dataset(dataset_path(opened.params.dataset))
    channels, size = dataset.image_shape[0], opened.params.validation.batch_size
    given = parsed_values(mean, channels, "--mean"), parsed_values(deviation, channels, "--std")
    chosen = _options(opened, options)
    classifier = build_classifier(arch, **chosen, image_shape=dataset.image_shape, classes=dataset.classes)
    read = read_weights(checkpoint, classifier.network, weights)
    print(f"weights: {f'those under {read.prefix}' if read.prefix else 'the whole file'}", flush=True)
    if read.left_out:
        print(f"left out: {', '.join(read.left_out)}", flush=True)
    classifier.network.load_state_dict(read.tensors)
    classifier = classifier.to(opened.device).eval().requires_grad_(False)
    set_normalization(classifier, *given)
    validation = dataset.splits["validation"].to(opened.device)
    if classifier.output is not None:
        print(f"logits: entry {classifier.output!r} of what the network returns", flush=True)
    print(f"outputs 0 to {dataset.classes - 1}, as assumed: {listed_classes(dataset.class_names)}", flush=True)
    measured = _measured(classifier, validation, given, accuracy, size, dataset, checkpoint)
    inputs = {"checkpoint": file_digest(checkpoint), "dataset": dataset.fingerprint, **own_code_inputs(arch, "arch")}
    provenance = opened.provenance(inputs=inputs)
    imported = {"file": checkpoint.name, "weights": read.prefix, **measured}
    save_classifier(
        folder, classifier, arch=arch, options=chosen, dataset=dataset, provenance=provenance, imported=imported
    )


def _options(opened: OpenStage, options: str) -> dict[str, Any]:
    """Those of the section `classifier` of params.yaml, with `options` laid over them."""
    whole = opened.all_params.model_dump(by_alias=True)
    try:
        given = read_yaml(options) or {}
    except ValueError as error:
        raise ParamsError(f"--options {options!r} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise ParamsError(f"--options {options!r} must be keys and values, as '{{width: 64}}'")
    params: ClassifierParams = parse_params(
        {**whole, "classifier": {**whole["classifier"], **given}}, "--options"
    ).classifier
    return params.model_dump()


def _measured(
    classifier: NormalizedClassifier,
    validation: Split,
    given: tuple[Values, Values],
    accuracy: float | None,
    batch_size: int,
    dataset: Dataset,
    checkpoint: Path,
) -> dict[str, Any]:
    right = hits(classifier, validation, batch_size)
    found = float(right.double().mean())
    print(f"accuracy on {len(validation)} validation images: {found:.1%}", flush=True)
    better = better_normalization(classifier, validation, given, right, batch_size)
    remedy = (
        f"another normalization, {better}" if better else "of the normalizations that were tried none is clearly better"
    )
    if accuracy is not None:
        error = math.sqrt(accuracy * (1 - accuracy) / len(validation))
        if found < accuracy - MARGIN * max(error, 1 / len(validation)):
            raise WeightsError(
                f"{checkpoint} classifies {found:.1%} of {len(validation)} validation images correctly, far below the "
                f"{accuracy:.1%} of --accuracy: {remedy}. Otherwise look at --arch, --weights, and the order of the classes, "
                f"which is taken for {listed_classes(dataset.class_names)}"
            )
    elif better:
        print(f"Warning: {remedy}; if the network was trained so, import it again", flush=True)
    return {"accuracy": found, "validation_images": len(validation)}


def main(
    checkpoint: Annotated[
        Path, typer.Argument(help="A state dict, or a file that holds one: .pt, .pth, .ckpt, .safetensors.")
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder, for classifier_checkpoint.")] = DATA
    / "pretrained_classifier",
    *,
    arch: Annotated[str, typer.Option(help="Its architecture, as `arch` in params.yaml.")],
    mean: Annotated[
        str, typer.Option(help="Of pixels in [0, 1], as 0.49,0.48,0.45; 0 where the network normalizes itself.")
    ],
    deviation: Annotated[
        str, typer.Option("--std", help="The standard deviation likewise; 1 where it normalizes itself.")
    ],
    options: Annotated[
        str, typer.Option(help="Of the architecture, laid over the section `classifier` of params.yaml: '{width: 64}'.")
    ] = "{}",
    accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="What is said of it, a fraction: far less here is refused.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which network of a file that holds several: how the names of its tensors begin.")
    ] = None,
) -> None:
    """Take a classifier from elsewhere, and measure on validation images whether it is read as it was trained."""
    reads = ("dataset", "seed", "validation.batch_size")
    with stage("import_classifier", reads=reads, memory="validation.batch_size") as opened:
        import_classifier(
            opened,
            checkpoint,
            folder,
            arch=arch,
            options=options,
            mean=mean,
            deviation=deviation,
            accuracy=accuracy,
            weights=weights,
        )
        print(f"{folder}: run with -S classifier_checkpoint={folder}", flush=True)


if __name__ == "__main__":
    run(main)

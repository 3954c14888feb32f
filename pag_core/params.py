"""params.yaml as frozen, validated objects: one class for each section, with its choices and bounds."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pag_core.errors import ParamsError
from pag_core.param_values import (
    BatchSize,
    LayerSize,
    NonNegativeReal,
    PositiveInt,
    PositiveReal,
    ProcessCount,
    Radii,
    RadiusLabel,
    Real,
    UniqueKeyLoader,
)

Source = Literal["none", "oi", "cm", "nn", "sbg"]

# The output whose input-gradient a source's targets suit: class means and neighbours aligned with the log-probability
# cost most of the clean accuracy; score-based gradients, themselves differences to the unconditional score, gain by it.
SUITED_OUTPUT: dict[Source, Literal["logit", "log_softmax"]] = {
    "none": "log_softmax",
    "oi": "logit",
    "cm": "logit",
    "nn": "logit",
    "sbg": "log_softmax",
}


class Section(BaseModel):
    """A section of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareParams(Section):
    """Splits and sizes of the prepared dataset."""

    validation_fraction: Annotated[Real, Field(gt=0, lt=1)]
    test_fraction: Annotated[Real, Field(gt=0, lt=1)]
    images_per_class: PositiveInt | None
    image_size: LayerSize | None


class SourceLambdaParams(Section):
    """The lambda of each source where `lambda` is auto."""

    none: NonNegativeReal
    oi: NonNegativeReal
    cm: NonNegativeReal
    nn: NonNegativeReal
    sbg: NonNegativeReal


class OneImageParams(Section):
    """OI has no options; its images are drawn by the seed."""


class ClassMeanParams(Section):
    """CM: the class mean times a constant (Section 4.1)."""

    factor: PositiveReal


class NearestNeighborParams(Section):
    """NN: the size of the limited set D_y of Eq. 6."""

    samples_per_class: Annotated[PositiveInt, Field(ge=2)]


class DiffusionParams(Section):
    """The C+1-class diffusion model and its training (Appendix G.2, H)."""

    channels: Annotated[LayerSize, Field(multiple_of=32)]
    channel_multipliers: Annotated[tuple[LayerSize, ...], Field(min_length=1)]
    residual_blocks: LayerSize
    attention_resolutions: tuple[LayerSize, ...]
    attention_heads: LayerSize
    dropout: Annotated[Real, Field(ge=0, lt=1)]
    learn_sigma: Annotated[bool, Field(strict=True)]
    schedule: Literal["linear", "cosine"]
    timesteps: Annotated[int, Field(ge=2, le=10**6, strict=True)]
    timestep_window: tuple[Annotated[int, Field(ge=0, strict=True)], Annotated[int, Field(ge=0, strict=True)]] | None
    steps: PositiveInt
    batch_size: BatchSize
    learning_rate: PositiveReal
    ema_decay: Annotated[Real, Field(ge=0, lt=1)]
    precision: Literal["float32", "tf32"]
    checkpoint_seconds: NonNegativeReal

    @model_validator(mode="after")
    def _window_lies_inside(self) -> Self:
        if self.timestep_window is not None:
            low, high = self.timestep_window
            if not low <= high < self.timesteps:
                raise ValueError(f"timestep_window [{low}, {high}] must rise and end below timesteps={self.timesteps}")
        return self


class ScoreBasedParams(Section):
    """SBG: noise level, draws, images at once and precision of the distillation (Eq. 8)."""

    timestep: Annotated[int, Field(ge=0, lt=10**6, strict=True)]
    draws: PositiveInt
    batch_size: BatchSize
    precision: Literal["float32", "tf32", "bfloat16", "float16"]
    min_cosine: Annotated[Real, Field(gt=0, le=1)]
    compile: Annotated[bool, Field(strict=True)]


class GradientStoreParams(Section):
    """Format of the store of score-based gradients."""

    dtype: Literal["int8", "float16", "float32"]
    images_per_shard: BatchSize
    images_per_chunk: BatchSize
    held_out_images: PositiveInt

    @model_validator(mode="after")
    def _chunks_fill_a_shard(self) -> Self:
        if self.images_per_shard % self.images_per_chunk:
            raise ValueError(
                f"images_per_shard={self.images_per_shard} must be a multiple of images_per_chunk={self.images_per_chunk}"
            )
        return self


class FeedParams(Section):
    """How a dense store's gradients reach the training."""

    mode: Literal["auto", "resident", "memory_map"]
    budget_gb: PositiveReal | None
    window_shards: BatchSize | None


class ClassifierParams(Section):
    """Options of the architecture; None takes its own."""

    width: LayerSize | None
    activation: Literal["relu", "silu", "gelu"] | None
    depth: LayerSize | None
    patch_size: LayerSize | None


class TrainParams(Section):
    """The recipe that model and baseline share (Appendix G.2)."""

    epochs: PositiveInt
    batch_size: BatchSize
    optimizer: Literal["adamw", "sgd"]
    learning_rate: PositiveReal
    momentum: Annotated[Real, Field(ge=0, lt=1)]
    weight_decay: NonNegativeReal
    schedule: Literal["cosine", "step", "constant"]
    augmentation: Literal["none", "crop_flip"]
    precision: Literal["float32", "tf32", "bfloat16"]
    compile: Annotated[bool, Field(strict=True)]
    channels_last: Annotated[bool, Field(strict=True)]
    validation_attacked: PositiveInt
    validation_radii: dict[Literal["L2", "Linf"], Radii]
    checkpoint_seconds: NonNegativeReal


class WeightWarmupParams(Section):
    """A lambda that is smaller at first: `factor` times its value in the first `epochs`."""

    factor: PositiveReal
    epochs: PositiveInt


class ObjectiveParams(Section):
    """How the alignment term of Eq. 4 is computed; parsed parameters hold the output that `auto` stands for."""

    output: Literal["auto", "logit", "log_softmax"]
    classes_per_step: PositiveInt | None
    scaling: Literal["all", "drawn"]
    differentiation: Literal["adjoint", "autograd"]
    batch_norm: Literal["repeat", "class", "frozen"]
    weight_warmup: WeightWarmupParams | None


class AutoAttackParams(Section):
    """Test images and radii of AutoAttack, and how its work is divided."""

    images: PositiveInt
    radii: Annotated[dict[Literal["L1", "L2", "Linf"], Radii], Field(min_length=1)]
    # the library tells its counts as percentages of two decimals
    images_per_shard: Annotated[int, Field(gt=0, le=5000, strict=True)]
    batch_size: BatchSize


class FoolboxParams(Section):
    """Test images and the grid of radii of the attacks of Table 6."""

    images: PositiveInt
    grid: dict[Literal["L0", "L1", "L2"], Radii]
    ead_steps: PositiveInt
    search_steps: PositiveInt
    salt_and_pepper_repeats: PositiveInt
    batch_size: BatchSize

    @model_validator(mode="after")
    def _has_every_norm(self) -> Self:
        if missing := {"L0", "L1", "L2"} - set(self.grid):
            raise ValueError(f"grid lacks radii for {', '.join(sorted(missing))}")
        return self


class MaskingParams(Section):
    """The checks against masked gradients."""

    images: PositiveInt
    radii: Annotated[dict[Literal["L2", "Linf"], Radii], Field(min_length=1)]
    steps: PositiveInt
    square_queries: PositiveInt
    transfer_radii: Annotated[dict[Literal["L2", "Linf"], Radii], Field(min_length=1)]


class AlignmentParams(Section):
    """The PAG score."""

    images: PositiveInt
    reference: Source


class FiguresParams(Section):
    """The pictures; the radius and steps are those of Fig. 2."""

    images: PositiveInt
    targeted_radius: Annotated[dict[Literal["L2", "Linf"], RadiusLabel], Field(min_length=1, max_length=1)]
    targeted_steps: PositiveInt


class Params(Section):
    """The whole of params.yaml."""

    dataset: Literal["digits", "cifar10", "image_folder"]
    source: Source
    arch: Literal["small_resnet", "resnet18", "wrn_34_10", "vgg11", "vgg13", "vgg16", "vit", "mixer"]
    # `lambda` is a keyword of Python
    weight: NonNegativeReal = Field(alias="lambda")
    source_lambda: SourceLambdaParams
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    processes: ProcessCount | None
    threads: ProcessCount | None
    diffusion_checkpoint: Annotated[str, Field(min_length=1)]
    image_folder: Annotated[str, Field(min_length=1)]
    prepare: PrepareParams
    oi: OneImageParams
    cm: ClassMeanParams
    nn: NearestNeighborParams
    diffusion: DiffusionParams
    sbg: ScoreBasedParams
    gradient_store: GradientStoreParams
    feed: FeedParams
    classifier: ClassifierParams
    train: TrainParams
    objective: ObjectiveParams
    autoattack: AutoAttackParams
    foolbox: FoolboxParams
    masking: MaskingParams
    alignment: AlignmentParams
    figures: FiguresParams

    def section(self, *names: str) -> dict[str, Any]:
        """The named parameters as plain data, spelled as in params.yaml: what a stage's result depends on."""
        plain = self.model_dump(mode="json", by_alias=True)
        return {name: plain[name] for name in names}


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml.

    Raises ParamsError that names each refused key or value, its place, what is allowed and the nearest name.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run the stage from the folder that holds it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must hold keys and values, not {type(content).__name__}")
    return parse_params(content, str(path))


def parse_params(content: dict[str, Any], place: str = "params.yaml") -> Params:
    """Validate parameters given as plain data; raises ParamsError as `load_params` does.

    `auto` becomes what suits the source: `lambda` its value in `source_lambda`, `objective.output` its SUITED_OUTPUT.
    """
    try:
        parsed = Params.model_validate(_with_lambda(content))
    except ValidationError as error:
        lines = [_explained(dict(problem), content) for problem in error.errors()]
        raise ParamsError(f"{place}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    if parsed.objective.output == "auto":
        suited = parsed.objective.model_copy(update={"output": SUITED_OUTPUT[parsed.source]})
        parsed = parsed.model_copy(update={"objective": suited})
    return parsed


def _with_lambda(content: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the source's lambda in place of auto; what cannot be looked up is left for validation to refuse."""
    weights, source = content.get("source_lambda"), content.get("source")
    if content.get("lambda") == "auto" and isinstance(weights, dict) and isinstance(source, str) and source in weights:
        return {**content, "lambda": weights[source]}
    return content


def _explained(problem: dict[str, Any], content: dict[str, Any]) -> str:
    location = problem["loc"]
    place = ".".join(str(part) for part in location)
    if problem["type"] == "missing" and isinstance(location[-1], int):
        return f"{'.'.join(str(part) for part in location[:-1])}: {problem['input']!r} has too few values"
    if problem["type"] in ("extra_forbidden", "missing"):
        keys = _keys_at(location[:-1])
        kind = "is an unknown key" if problem["type"] == "extra_forbidden" else "is missing"
        text = f"{place} {kind}; allowed: {', '.join(keys)}"
        return text + (_nearest(str(location[-1]), keys) if problem["type"] == "extra_forbidden" else "")
    if problem["type"] == "literal_error":
        if location[-1] == "[key]":
            place = ".".join(str(part) for part in location[:-2])
        allowed = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{place}: {problem['input']!r} is not one of: {', '.join(allowed)}" + _nearest(
            str(problem["input"]), allowed
        )
    return f"{place}: {problem['input']!r} is refused: {problem['msg'].removeprefix('Value error, ')}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Params
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        # an optional section is a union with None
        section = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _nearest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""

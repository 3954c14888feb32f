"""params.yaml as frozen objects: the whole, and a class for each section of what is trained, with its choices and bounds."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from pag_core.params.measurements import (
    AutoAttackParams,
    FiguresParams,
    FoolboxParams,
    MaskingParams,
    PagScoreParams,
    ToyParams,
    ValidationParams,
)
from pag_core.params.values import (
    ArchitectureName,
    BatchSize,
    CheckedStage,
    ClassNames,
    Control,
    Count,
    LayerSize,
    MethodName,
    NonNegativeReal,
    Output,
    OwnName,
    PositiveInt,
    PositiveReal,
    ProcessCount,
    RadiusLabel,
    Real,
    Section,
    Source,
    Timesteps,
)

# of the linear schedule, whose last beta is this over the number of timesteps and must stay below 1
LINEAR_TIMESTEPS = 20


class PrepareParams(Section):
    """Splits and sizes of the prepared dataset."""

    validation_fraction: Annotated[Real, Field(gt=0, lt=1)]
    test_fraction: Annotated[Real, Field(gt=0, lt=1)]
    classes: ClassNames | None
    images_per_class: PositiveInt | None
    image_size: LayerSize | None


class CheckParams(Section):
    """Of which stages the stage `check` looks at what they ask for; None is all."""

    stages: tuple[CheckedStage, ...] | None


class SourceDefault(Section):
    """What `lambda: auto` and `objective.output: auto` stand for with one source."""

    lambda_: NonNegativeReal = Field(alias="lambda")
    output: Output


class SourceDefaults(Section):
    """The lambda and output that suit each source.

    Class means and neighbors aligned with the log-probability cost most of the clean accuracy. Score-based gradients, which
    are differences from the unconditional score, gain from it.
    """

    none: SourceDefault
    oi: SourceDefault
    cm: SourceDefault
    nn: SourceDefault
    sbg: SourceDefault
    sbg_online: SourceDefault
    own: SourceDefault


class NoOptions(Section):
    """Vanilla training, OI (its images are drawn by the seed) and cross-entropy have none."""


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
    precision: Literal["float32", "tf32", "bfloat16"]
    compile: Annotated[bool, Field(strict=True)]

    @model_validator(mode="after")
    def _schedule_has_room(self) -> Self:
        if self.schedule == "linear" and self.timesteps <= LINEAR_TIMESTEPS:
            raise ValueError(
                f"timesteps {self.timesteps} is too few for the linear schedule, whose last step adds noise of variance "
                f"{LINEAR_TIMESTEPS}/timesteps: more than {LINEAR_TIMESTEPS}, or schedule: cosine"
            )
        return self

    @model_validator(mode="after")
    def _window_lies_inside(self) -> Self:
        if self.timestep_window is not None:
            low, high = self.timestep_window
            if not low <= high < self.timesteps:
                raise ValueError(f"timestep_window [{low}, {high}] must rise and end below timesteps={self.timesteps}")
        return self


class ScoreBasedParams(Section):
    """SBG: noise levels, draws, images at once and precision of the distillation (Eq. 8)."""

    timesteps: Timesteps = Field(alias="timestep")
    draws: PositiveInt
    batch_size: BatchSize
    precision: Literal["float32", "tf32", "bfloat16", "float16"]
    min_cosine: Annotated[Real, Field(gt=0, le=1)]
    compile: Annotated[bool, Field(strict=True)]


class OwnParams(Section):
    """A source of the user's: its function, with its options and what it reads."""

    function: OwnName | None
    options: dict[str, JsonValue]
    reads: Annotated[str, Field(min_length=1)]
    batch_size: BatchSize


class GradientStoreParams(Section):
    """Format of the store of score-based gradients; `classes_per_image` None keeps all."""

    address: Annotated[str, Field(pattern=r"^[a-z0-9+]+://.+")] | None
    classes_per_image: Annotated[int, Field(ge=2, le=10**6, strict=True)] | None
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
    """Options of the architecture; None takes its own. `options` are of one of the user's or of timm."""

    width: LayerSize | None
    activation: Literal["relu", "silu", "gelu"] | None
    depth: LayerSize | None
    patch_size: LayerSize | None
    options: dict[str, JsonValue]


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
    ema_decay: Annotated[Real, Field(ge=0, lt=1)] | None
    validate_every: Annotated[int, Field(ge=0, le=10**6, strict=True)]
    keep: Literal["last", "best"]
    best_by: Literal["robust", "clean", "L2", "Linf"]
    precision: Literal["float32", "tf32", "bfloat16"]
    compile: Annotated[bool, Field(strict=True)]
    channels_last: Annotated[bool, Field(strict=True)]

    @model_validator(mode="after")
    def _best_is_one_of_several(self) -> Self:
        if self.keep == "best" and not 0 < self.validate_every < self.epochs:
            raise ValueError(
                f"keep: best needs more than one validation, and validate_every is {self.validate_every} of {self.epochs} "
                f"epochs: set it to 1 to {max(1, self.epochs - 1)}, or keep: last"
            )
        return self


class WeightWarmupParams(Section):
    """A lambda that is smaller at first: `factor` times its value in the first `epochs`."""

    factor: PositiveReal
    epochs: PositiveInt


class ObjectiveParams(Section):
    """How the alignment term of Eq. 4 is computed; parsed parameters hold the output that `auto` stands for."""

    output: Output | Literal["auto"]
    classes_per_step: Count | Literal["all"]
    scaling: Literal["all", "drawn"]
    differentiation: Literal["adjoint", "autograd"]
    batch_norm: Literal["repeat", "class", "frozen"]
    weight_warmup: WeightWarmupParams | None


WarmupEpochs = Annotated[int, Field(ge=0, le=10**6, strict=True)]


class InnerAttackParams(Section):
    """The attack inside adversarial training: its ball, its steps, and the mode of batch-norm and dropout within it."""

    norm: Literal["L2", "Linf"]
    radius: RadiusLabel
    steps: PositiveInt
    step_size: RadiusLabel | None
    mode: Literal["eval", "train"]


class AdversarialTrainingParams(InnerAttackParams):
    """AT (Madry et al., 2018)."""

    random_start: Annotated[bool, Field(strict=True)]
    warmup_epochs: WarmupEpochs


class TradesParams(InnerAttackParams):
    """TRADES (Zhang et al., 2019)."""

    beta: PositiveReal


class GradientNormParams(Section):
    """The norm of the cross-entropy's input-gradient as a penalty (Rodriguez-Munoz et al., 2024)."""

    norm: Literal["L1", "L2"]
    weight: NonNegativeReal
    warmup_epochs: WarmupEpochs


class GaussianNoiseParams(Section):
    """Noise on the images of the classification part (Cohen et al., 2019): `sigma` is its standard deviation per pixel."""

    sigma: PositiveReal


class Params(Section):
    """The whole of params.yaml."""

    dataset: Literal["digits", "cifar10", "cifar100", "stl10", "tiny_imagenet", "image_folder"]
    source: Source
    arch: ArchitectureName
    method: MethodName
    baseline_method: MethodName
    # `lambda` is a keyword of Python
    lambda_: NonNegativeReal = Field(alias="lambda")
    control: Control | None
    source_defaults: SourceDefaults
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    processes: ProcessCount | None
    threads: ProcessCount | None
    checkpoint_seconds: NonNegativeReal
    diffusion_checkpoint: Annotated[str, Field(min_length=1)]
    classifier_checkpoint: Annotated[str, Field(min_length=1)]
    image_folder: Annotated[str, Field(min_length=1)]
    prepare: PrepareParams
    check: CheckParams
    none: NoOptions
    oi: NoOptions
    cm: ClassMeanParams
    nn: NearestNeighborParams
    diffusion: DiffusionParams
    sbg: ScoreBasedParams
    own: OwnParams
    gradient_store: GradientStoreParams
    feed: FeedParams
    classifier: ClassifierParams
    train: TrainParams
    objective: ObjectiveParams
    standard: NoOptions
    at: AdversarialTrainingParams
    trades: TradesParams
    gradient_norm: GradientNormParams
    gaussian_noise: GaussianNoiseParams
    validation: ValidationParams
    autoattack: AutoAttackParams
    foolbox: FoolboxParams
    masking: MaskingParams
    pag_score: PagScoreParams
    figures: FiguresParams
    toy: ToyParams

    @model_validator(mode="after")
    def _own_source_has_its_function(self) -> Self:
        if "own" in (self.source, self.pag_score.reference) and self.own.function is None:
            raise ValueError(
                "source own needs own.function, the name of your function: own.gradients:NAME (own/README.md)"
            )
        return self

    @model_validator(mode="after")
    def _best_is_by_what_is_validated(self) -> Self:
        if self.train.keep == "best" and self.train.best_by not in ("robust", "clean", *self.validation.radii):
            raise ValueError(
                f"train.best_by is {self.train.best_by}, and validation.radii has {', '.join(self.validation.radii)} alone: "
                "set it to one of these, to robust (the mean of all) or to clean"
            )
        return self

    def section(self, *keys: str) -> dict[str, Any]:
        """The named parameters, or `section.key` of one, as plain data, spelled as in params.yaml."""
        plain = self.model_dump(mode="json", by_alias=True)
        found: dict[str, Any] = {}
        for name, _, key in (key.partition(".") for key in keys):
            found[name] = {**found.get(name, {}), key: plain[name][key]} if key else plain[name]
        return found

"""Values of params.yaml: names, numbers with bounds, radii kept as they are written; and what all its sections have."""

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WrapValidator
from pydantic_core import PydanticKnownError

from pag_core.params.radii import radius_value

# of the project; pag_core/classifiers/architectures.py builds them
ARCHITECTURE_NAMES = ("small_resnet", "resnet18", "wrn_34_10", "vgg11", "vgg13", "vgg16", "vit", "mixer")
# a function of the user's: of own/FILE.py, or own/FOLDER/FILE.py
OWN_NAME = r"own(\.[A-Za-z_]\w*)+:[A-Za-z_]\w*"
Source = Literal["none", "oi", "cm", "nn", "sbg", "sbg_online", "own"]
MethodName = Literal["standard", "at", "trades", "gradient_norm", "gaussian_noise"]
Output = Literal["logit", "log_softmax"]
CheckedStage = Literal["train", "baseline", "validation", "autoattack", "foolbox", "masking", "pag_score", "figures"]
Control = Literal["other_image", "other_class", "shuffled_pixels"]


def _architecture(value: Any) -> Any:
    if not isinstance(value, str) or (
        value not in ARCHITECTURE_NAMES and not re.fullmatch(rf"{OWN_NAME}|timm:[\w.]+", value)
    ):
        choices = ", ".join(map(repr, (*ARCHITECTURE_NAMES, "own.FILE:FUNCTION", "timm:NAME")))
        raise PydanticKnownError("literal_error", {"expected": choices})
    return value


ArchitectureName = Annotated[str, BeforeValidator(_architecture)]
OwnName = Annotated[str, Field(pattern=f"^{OWN_NAME}$")]


def is_imported(classifier_checkpoint: str) -> bool:
    """Whether `classifier_checkpoint` names another classifier than the one that is trained here."""
    return PurePath(classifier_checkpoint) != PurePath("data/classifier")


class Section(BaseModel):
    """A section of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# bool counts as a number in Python; `steps: true` is a mistake, not a 1. The bounds are far beyond any experiment: a
# typing error is refused here, not where memory runs out or a loop never ends.
PositiveInt = Annotated[int, Field(gt=0, le=10**9, strict=True)]  # steps, epochs, images
BatchSize = Annotated[int, Field(gt=0, le=10**6, strict=True)]
LayerSize = Annotated[int, Field(gt=0, le=2**14, strict=True)]  # channels, blocks, pixels of a side
ProcessCount = Annotated[int, Field(gt=0, le=2**12, strict=True)]


def _auto_or(value: Any, number: Callable[[Any], int]) -> Any:
    return value if value == "auto" else number(value)


# a number once there is a dataset to count (pag_core.datasets.counts), till then as written
Count = Annotated[PositiveInt, WrapValidator(_auto_or), PlainSerializer(lambda value: value)]


def _real(value: Any) -> Any:
    """A boolean counts as a number in Python; `lambda: true` is a mistake."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a boolean")
    return value


Real = Annotated[float, BeforeValidator(_real), Field(allow_inf_nan=False)]
PositiveReal = Annotated[Real, Field(gt=0)]
NonNegativeReal = Annotated[Real, Field(ge=0)]


# beyond the L1 distance of any two images
LARGEST_RADIUS = 1e6


def _radius_label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a radius is a number or a fraction such as 8/255, not {value!r}")
    label = str(value)
    if any(map(str.isspace, label)):
        raise ValueError(
            f"a radius is written without blanks, not {value!r}: in results a blank parts it from its norm"
        )
    try:
        positive = radius_value(label) > 0
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"a radius is a number or a fraction such as 8/255, not {value!r}") from None
    if not positive:
        raise ValueError(f"a radius is positive, not {value!r}")
    if radius_value(label) > LARGEST_RADIUS:
        raise ValueError(f"a radius is at most {LARGEST_RADIUS:g}, not {value!r}: pixels lie in [0, 1]")
    return label


RadiusLabel = Annotated[str, BeforeValidator(_radius_label)]
Radii = Annotated[tuple[RadiusLabel, ...], Field(min_length=1)]
LargeRadius = Annotated[dict[Literal["L2", "Linf"], RadiusLabel], Field(min_length=1, max_length=1)]


def _one_or_several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _all_differ(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("a noise level is given twice")
    return values


ClassNames = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_all_differ)]


def _as_written(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(values) == 1 else list(values)


# one as a number, several as a list of different ones
Timesteps = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=10**6, strict=True)], ...],
    Field(min_length=1),
    AfterValidator(_all_differ),
    BeforeValidator(_one_or_several),
    PlainSerializer(_as_written),
]

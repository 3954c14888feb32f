"""Sections of params.yaml for what is measured and shown: attacks, checks, scores, figures, and the toy experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pag_core.params.values import (
    BatchSize,
    Count,
    LargeRadius,
    NonNegativeReal,
    Output,
    PositiveInt,
    PositiveReal,
    Radii,
    Section,
    Source,
)


class ValidationParams(Section):
    """The images of the validation split, and the radii, of the short APGD by which choices are made."""

    images: Count
    radii: dict[Literal["L2", "Linf"], Radii]
    batch_size: BatchSize


class AutoAttackParams(Section):
    """Test images and radii of AutoAttack, which of its versions, and how its work is divided."""

    version: Literal["standard", "plus"]
    images: Count
    radii: Annotated[dict[Literal["L1", "L2", "Linf"], Radii], Field(min_length=1)]
    # the library reports its counts as percentages with two decimals
    images_per_shard: Annotated[int, Field(gt=0, le=5000, strict=True)]
    batch_size: BatchSize


class FoolboxParams(Section):
    """Test images and the grid of radii of the attacks of Table 6."""

    images: Count
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

    images: Count
    radii: Annotated[dict[Literal["L2", "Linf"], Radii], Field(min_length=1)]
    steps: PositiveInt
    square_queries: PositiveInt
    transfer_radii: Annotated[dict[Literal["L2", "Linf"], Radii], Field(min_length=1)]
    batch_size: BatchSize


class PagScoreParams(Section):
    """Both PAG scores: images and reference of the cosine, images for the judge and of the judge."""

    images: Count
    reference: Source
    judged_images: Count
    judged_radius: LargeRadius
    judge_images: Count
    batch_size: BatchSize


class FiguresParams(Section):
    """The pictures; the radius and steps are those of Fig. 2."""

    images: PositiveInt
    targeted_radius: LargeRadius
    targeted_steps: PositiveInt
    batch_size: BatchSize


class ToyParams(Section):
    """The toy experiment (Section 5.1, Appendix G.1); radius and step size are in units of the points."""

    seeds: PositiveInt
    lambda_: NonNegativeReal = Field(alias="lambda")
    output: Output
    samples_per_class: Annotated[PositiveInt, Field(ge=2)]
    epochs: PositiveInt
    batch_size: BatchSize
    learning_rate: PositiveReal
    radius: PositiveReal
    steps: PositiveInt
    step_size: PositiveReal

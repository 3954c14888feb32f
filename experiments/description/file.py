"""The file of a description: its keys and what they hold. What does not fit is refused with its place and what is allowed."""

import reprlib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
)

from pag_core.errors import ParamsError
from pag_core.params.reading import plain_params


def _name(value: Any) -> Any:
    """YAML reads 1e-1 and 0.10 as the same number, where they are names."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name, which is a word; write it in quotes")
    return value


def _section(value: Any) -> Any:
    """`full:` without a value is YAML's null, and has nothing in it."""
    return {} if value is None else value


def _by_name(value: Any) -> Any:
    value = _section(value)
    if not isinstance(value, dict):
        return value
    return {_name(key): _section(part) for key, part in value.items()}


def _all_differ(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice")
    return seeds


def _values(values: Any) -> Any:
    """The values of a parameter in a grid, which name its classifiers."""
    if not isinstance(values, list) or not values:
        raise ValueError(
            "the values of a grid are a list, as [0.5, 1]; a key in a section is SECTION.KEY, as train.epochs"
        )
    for number, value in enumerate(values):
        if isinstance(value, dict | list):
            raise ValueError(f"{value!r} makes no name, as a number or a word does; write it as one of classifiers")
        # 1 and 1.0 are one value, true is another
        if [value] in [[other] for other in values[:number] if isinstance(other, bool) == isinstance(value, bool)]:
            raise ValueError(f"{value!r} is given twice; leave one out")
    return values


def _file_and_size(value: str) -> str:
    file, _, size = value.partition(":")
    if not file or not size:
        raise ValueError("a size of another description is FILE:SIZE, as ../cifar10_resnet18.yaml:full")
    return value


Plain = dict[str, Any]
Name = Annotated[str, BeforeValidator(_name)]
Section = Annotated[dict[str, Any], BeforeValidator(_section)]
Names = Annotated[list[Name], Field(min_length=1)]
Seeds = Annotated[list[StrictInt], Field(min_length=1), AfterValidator(_all_differ)]


class DescribedRow(BaseModel):
    """A row of the table: `of` which classifier, and under which name its numbers stand in published.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Name
    baseline: StrictBool = False
    published: Name | None = None


class Setup(BaseModel):
    """What is said beside parameters: of all sizes, or of one in its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Name | None = None
    stages: Names | None = None
    seeds: Seeds | None = None
    needs_images: StrictBool = False
    classifiers: Annotated[dict[str, Section], Field(min_length=1), BeforeValidator(_by_name)] | None = None
    grid: Annotated[dict[Name, Annotated[list[Any], BeforeValidator(_values)]], BeforeValidator(_section)] = Field(
        default={}
    )
    rows: Annotated[dict[str, DescribedRow], BeforeValidator(_by_name)] = Field(default={})
    settings: list[Name] = Field(default=[])


class Size(Setup):
    """A size: all its other keys are parameters."""

    model_config = ConfigDict(extra="allow")

    like: Annotated[str, AfterValidator(_file_and_size)] | None = None


class Description(Setup):
    """A whole file."""

    params: Section = Field(default={})
    sizes: Annotated[dict[str, Size], Field(min_length=1), BeforeValidator(_by_name)]

    def at(self, size: str) -> Setup:
        """What it says of a size beside parameters."""
        chosen = self.sizes[size]
        own = chosen.model_fields_set & Setup.model_fields.keys()
        return self.model_copy(update={key: getattr(chosen, key) for key in own})


def refused(text: str) -> typer.BadParameter:
    """The error of a description."""
    return typer.BadParameter(text, param_hint="DESCRIPTION")


def read_description(file: Path) -> Description:
    """What is in the file of a description; raises BadParameter where it does not exist, or for what in it is wrong."""
    try:
        return Description.model_validate(plain_params(file.read_bytes(), str(file)))
    except (FileNotFoundError, IsADirectoryError):
        raise refused(f"there is no description {file}") from None
    except ParamsError as error:
        raise refused(str(error)) from None
    except ValidationError as error:
        raise refused("\n".join(f"{file}: {_explained(dict(problem))}" for problem in error.errors())) from None


def layers(file: Path, description: Description, size: str, likes: tuple[tuple[Path, str], ...] = ()) -> list[Plain]:
    """The parameters of a description at one of its sizes: those of the size that it is `like`, its own, the size's.

    `likes` are the sizes that are like this one. Raises BadParameter for a size that is like none there is, or like itself.
    """
    chosen = description.sizes[size]
    before: list[Plain] = []
    if chosen.like is not None:
        name, _, other_size = chosen.like.partition(":")
        other = file.parent / name
        place = f"{file}: sizes: {size}: like: {chosen.like}"
        likes = (*likes, (file.resolve(), size))
        if (other.resolve(), other_size) in likes:
            raise refused(f"{place} leads back to itself; name a size that is not like this one")
        if not other.is_file():
            raise refused(f"{place}: there is no description {other}")
        liked = read_description(other)
        if other_size not in liked.sizes:
            raise refused(f"{place}: {other_size} is not one of: {', '.join(liked.sizes)}")
        before = layers(other, liked, other_size, likes)
    return [*before, description.params, chosen.model_extra or {}]


def _explained(problem: dict[str, Any]) -> str:
    place = ": ".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "extra_forbidden":
        if len(problem["loc"]) > 1:
            return f"{place} is not one of: {', '.join(DescribedRow.model_fields)}"
        return f"{place} is not one of: {', '.join(Description.model_fields)}; parameters go below params"
    return f"{place}: {reprlib.repr(problem['input'])} is refused: {problem['msg'].removeprefix('Value error, ')}"

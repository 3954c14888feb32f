"""Reading params.yaml: every key and value is checked, and what is refused is explained."""

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pag_core.errors import ParamsError
from pag_core.params.sections import Params
from pag_core.params.values import is_imported
from pag_core.params.yaml_text import read_yaml


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml.

    Raises ParamsError that names each refused key or value, its place, what is allowed and the nearest name.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run the stage from the folder that holds it") from None
    return parse_params(plain_params(text, str(path)), str(path))


def plain_params(text: bytes, place: str) -> dict[str, Any]:
    """The keys and values in YAML, not validated; raises ParamsError that names `place` if it holds anything else."""
    try:
        content = read_yaml(text.decode("utf-8"))
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ParamsError(f"{place} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{place} must hold keys and values, not {type(content).__name__}")
    return content


def parse_params(content: dict[str, Any], place: str = "params.yaml") -> Params:
    """Validate parameters given as plain data; raises ParamsError as `load_params` does.

    `auto` becomes what suits the source, as `source_defaults` says.
    """
    try:
        parsed = Params.model_validate(without_auto(content))
    except ValidationError as error:
        # an auto that is left stands for what could not be looked up, of which another line tells
        problems = [
            dict(problem)
            for problem in error.errors()
            if (problem["loc"], problem["input"]) != (("lambda",), "auto") or error.error_count() == 1
        ]
        lines = [_explained(problem, content) for problem in problems]
        raise ParamsError(f"{place}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    return parsed


def without_auto(content: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the source's values in place of auto; what cannot be looked up is left for validation to refuse.

    A classifier that was not trained here has neither source nor method that is known: they are as if there were none.
    """
    if isinstance(checkpoint := content.get("classifier_checkpoint"), str) and is_imported(checkpoint):
        content = {**content, "source": "none", "lambda": 0.0, "control": None, "method": "standard"}
    defaults, source, objective = (content.get(key) for key in ("source_defaults", "source", "objective"))
    suited = defaults.get(source) if isinstance(defaults, dict) and isinstance(source, str) else None
    if not isinstance(suited, dict):
        return content
    filled = dict(content)
    if content.get("lambda") == "auto" and "lambda" in suited:
        filled["lambda"] = suited["lambda"]
    if isinstance(objective, dict) and objective.get("output") == "auto" and "output" in suited:
        filled["objective"] = {**objective, "output": suited["output"]}
    return filled


def value_at(content: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in parameters as plain data."""
    value: Any = content
    for part in key.split("."):
        value = value[part]
    return value


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
        given = str(problem["input"])
        remedy = _nearest(given, allowed)
        if "own" in allowed and given.startswith("own."):
            remedy = f" (write own here, and own.function: {given})"
        return f"{place}: {problem['input']!r} is not one of: {', '.join(allowed)}{remedy}"
    reason = problem["msg"].removeprefix("Value error, ")
    # of several values that do not fit together
    return reason if not location else f"{place}: {problem['input']!r} is refused: {reason}"


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

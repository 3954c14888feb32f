"""Parameters as `dvc exp run --set-param` takes them."""

from typing import Any

from experiments.description.file import Plain


def overrides(params: Plain, base: Plain, before: str = "") -> list[str]:
    """`KEY=VALUE` for each value of `params` that is not that of `base`, `~KEY` for one that `params` lacks.

    As `dvc exp run --set-param` takes them: it lays a section's values over those that are there.
    """
    found = [f"~{before}{key}" for key in base if key not in params]
    for key, value in params.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and value:
            found += overrides(value, base[key], f"{before}{key}.")
        elif key not in base or value != base[key]:
            found.append(f"{'' if key in base else '+'}{before}{key}={_spelled(value)}")
    return found


def _spelled(value: Any) -> str:
    """A value in the grammar of overrides (Hydra's), in which words outside quotes may not hold every character."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            quoted = value.replace("'", "\\'")
            return f"'{quoted}'"
        case dict():
            return "{" + ",".join(f"{key}:{_spelled(part)}" for key, part in value.items()) + "}"
        case list():
            return "[" + ",".join(_spelled(part) for part in value) + "]"
        case _:
            return str(value)

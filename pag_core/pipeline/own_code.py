"""Functions of the user's by their names in params.yaml: `own.networks:convnet` is `convnet` of own/networks.py."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pag_core.errors import ParamsError

OWN = "own"


def is_own(name: str) -> bool:
    """Whether `name` is that of a function of the user's."""
    return name.startswith(f"{OWN}.")


def own_file(name: str) -> Path:
    """The file that holds the function, relative to the checkout."""
    return Path(*name.partition(":")[0].split(".")).with_suffix(".py")


def own_function(name: str, key: str) -> Callable[..., Any]:
    """The function or class; raises ParamsError, which says that `key` names it, where it or what it imports is not there."""
    module, _, attribute = name.partition(":")
    # an exported classifier carries the folder beside this file
    parent = f"{__package__}." if (Path(__file__).parent / OWN).is_dir() else ""
    try:
        loaded = importlib.import_module(parent + module)
    except ModuleNotFoundError as error:
        if error.name and f"{parent}{module}.".startswith(f"{error.name}."):
            raise missing(name, key) from None
        raise ParamsError(
            f"params.yaml: {key} is {name}, and {own_file(name)} imports {error.name}, which is not there: install it, or put "
            f"it into the folder {OWN}"
        ) from error
    function = getattr(loaded, attribute, None)
    if not callable(function):
        defined = [key for key, value in vars(loaded).items() if getattr(value, "__module__", None) == loaded.__name__]
        raise ParamsError(
            f"params.yaml: {key} is {name}, and {own_file(name)} has no function or class {attribute}; it has: "
            f"{', '.join(defined) or 'none'}"
        )
    found: Callable[..., Any] = function
    return found


def missing(name: str, key: str) -> ParamsError:
    """That the file of the function is not there."""
    file = own_file(name)
    return ParamsError(
        f"params.yaml: {key} is {name}, and {file} is not there; write it, and `git add {file}`: DVC's copies of the checkout "
        "(--queue, --temp) have only what git knows"
    )

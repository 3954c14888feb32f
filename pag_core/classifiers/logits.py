"""Where the logits are in what a network of the user's returns."""

from typing import Any

import torch

from pag_core.errors import ParamsError


def place_of_logits(returned: Any, images: int, classes: int) -> str | int | None:
    """Where the logits [N, classes] of `images` are in what a network returned: a key, a position, or None: it is they.

    A dictionary has them at `logits`, or like a tuple in its one entry of that shape. Raises ParamsError where it is not
    plain.
    """
    shape = (images, classes)
    if isinstance(returned, torch.Tensor):
        if tuple(returned.shape) != shape:
            raise ParamsError(f"the network returns {list(returned.shape)} for {images} images of {classes} classes")
        return None
    if not isinstance(returned, dict | list | tuple):
        raise ParamsError(f"the network returns a {type(returned).__name__}; {_wrapping('returned.logits')}")
    entries: list[tuple[str | int, Any]] = list(returned.items() if isinstance(returned, dict) else enumerate(returned))
    fitting = [key for key, entry in entries if isinstance(entry, torch.Tensor) and tuple(entry.shape) == shape]
    if isinstance(returned, dict) and "logits" in fitting:
        return "logits"
    if len(fitting) != 1:
        kinds = ", ".join(
            f"{key}: {list(entry.shape) if isinstance(entry, torch.Tensor) else type(entry).__name__}"
            for key, entry in entries
        )
        raise ParamsError(
            f"the network returns a {type(returned).__name__} of {kinds}, of which {len(fitting)} may be the logits "
            f"{list(shape)}; {_wrapping(f'returned[{(fitting or [0])[0]!r}]')}"
        )
    return fitting[0]


def _wrapping(chosen: str) -> str:
    return f"wrap it in a module whose forward() returns the logits alone, as `return {chosen}`, and name that as arch"

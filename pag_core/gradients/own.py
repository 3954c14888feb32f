"""Target gradients of a function of the user's (`source: own`), for the distillation."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pag_core.errors import ParamsError
from pag_core.params.sections import OwnParams
from pag_core.pipeline.own_code import own_function
from pag_core.pipeline.paths import CODE


class OwnGradients:
    """`function(images, labels, classes, **options)` gives g(x, c) float [B, K, C, H, W], in batches.

    `images` float32 [B, C, H, W] in [0, 1] on `device`, `labels` int64 [B] and `classes` int64 [B, K]. It gets the path of
    what it `reads` if it has an argument of that name. A class is made once, with its options, and its instance called.
    Raises ParamsError where it is not there, or takes other arguments.
    """

    def __init__(self, own: OwnParams, device: torch.device) -> None:
        assert own.function is not None
        self.name, self.device, self._batch_size = own.function, device, own.batch_size
        function = own_function(own.function, "own.function")
        options: dict[str, Any] = dict(own.options)
        if "reads" in inspect.signature(function).parameters:
            if (read := Path(own.reads)).is_relative_to(CODE):
                raise ParamsError(
                    f"params.yaml: {self.name} has an argument `reads`; name the file or folder in own.reads"
                )
            options["reads"] = read
        if isinstance(function, type):
            function, options = self._checked(function, (), options)(**options), {}
        self._function: Callable[..., Any] = self._checked(function, ("images", "labels", "classes"), options)
        self._options = options

    def batches(
        self, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, draws: torch.Generator
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Its gradients for each run of `own.batch_size` of `images`, with its place among them.

        torch's generators are seeded from `draws`. Raises ParamsError for a result of another shape or kind.
        """
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws, device=draws.device)))
        for start in range(0, len(images), self._batch_size):
            rows = slice(start, min(start + self._batch_size, len(images)))
            found = self._function(images[rows], labels[rows], classes[rows], **self._options)
            expected = [*classes[rows].shape, *images.shape[1:]]
            if not isinstance(found, torch.Tensor) or not found.is_floating_point() or list(found.shape) != expected:
                what = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
                raise ParamsError(
                    f"params.yaml: own.function is {self.name}, which returned {what}; for images {list(images[rows].shape)} "
                    f"and classes {list(classes[rows].shape)} it must return a float tensor {expected}"
                )
            yield rows, found.detach().to(self.device, torch.float32)

    def _checked(
        self, function: Callable[..., Any], given: tuple[str, ...], options: dict[str, Any]
    ) -> Callable[..., Any]:
        signature = inspect.signature(function)
        try:
            signature.bind(*given, **options)
        except TypeError as error:
            raise ParamsError(
                f"params.yaml: own.function is {self.name}, which takes {signature}: {error}; it is called with "
                f"({', '.join([*given, *(f'{key}=' for key in options)])}), the keys of own.options among them"
            ) from None
        return function

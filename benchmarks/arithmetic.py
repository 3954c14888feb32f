"""Floating-point operations, and what a device's peak rate makes of them."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.measurement import Measurement

# bf16 without sparsity, as measured on an H200 with large matrices; the data sheet promises 989
PEAK_TFLOPS = 790.0
EPOCH_IMAGES = 50_000


class _Operations(TorchDispatchMode):
    """Adds up the operations by torch's own formulas.

    torch's FlopCounterMode also follows modules, and its hooks refuse `autograd.grad` of a leaf inside a step.
    """

    total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


def counted_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of one call: two for each multiplication and addition of a matrix product or convolution."""
    with _Operations() as counter:
        call()
    total: int = counter.total
    return total


def device_figures(
    *,
    seconds: float,
    images: int,
    executed_flops: float,
    floor_flops: float,
    peak_tflops: float | None,
    epoch_name: str,
) -> dict[str, Measurement]:
    """Images per second, and with a peak rate (TFLOP/s) the share of it that is used and that is needed.

    `executed_flops` are those of a call over `images`, which takes `seconds`; `floor_flops` those that no exact method
    is known to go below. `epoch_name` says what a pass over 50,000 images is.
    """
    figures = {"images_per_second": Measurement(images / seconds, "images/s", None)}
    if peak_tflops is not None:
        peak, rate = peak_tflops * 1e12, f"{peak_tflops:g} TFLOP/s"
        floor = floor_flops / peak
        figures["flop_utilisation"] = Measurement(executed_flops / seconds / peak, "of the peak rate", rate)
        figures["share_of_floor"] = Measurement(
            floor / seconds, "of the speed at the floor", f"{floor_flops / images / 1e9:.4g} GFLOP an image at {rate}"
        )
        figures[epoch_name] = Measurement(
            seconds / images * EPOCH_IMAGES, "s", f"a floor of {floor / images * EPOCH_IMAGES:.3g} s at {rate}"
        )
    return figures

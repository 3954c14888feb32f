"""Reduced precision of the diffusion model in distillation: what it changes in the direction of Eq. 8 is measured first."""

import copy
from typing import cast

import torch
from torch import nn

from pag_core.compute.precision import AUTOCAST, computing_in, require_precision
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import NoisePredictor
from pag_core.errors import ParamsError
from pag_core.gradients.score_based import compared_classes, score_based_gradients
from pag_core.objective.cosine_alignment import cosine_similarity

SAMPLE = 64  # images that the direction is checked on


class _InFloat32(nn.Module):
    """The U-Net's last layer: rounding its output to 8 bits would be most of the error of a small difference."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            result: torch.Tensor = self.layer(features.float())
        return result


class _InPrecision(nn.Module):
    """A network that computes in another precision than its weights are kept in."""

    def __init__(self, network: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.device = device

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        with computing_in(self.precision, self.device):
            result: torch.Tensor = self.network(*inputs)
        return result


def in_precision(
    predictor: NoisePredictor, *, precision: str, compiled_for: tuple[int, int, int] | None = None
) -> NoisePredictor:
    """The same model computing in `float32`, `tf32`, `bfloat16` or `float16`.

    With the shape [C, H, W] of the images in `compiled_for` it runs as one compiled graph. The last layer stays in float32.
    Raises ParamsError if the device has no such mode or no compiler is found.
    """
    device = predictor.device
    require_precision(precision, device, "sbg.precision")
    network = predictor.network
    if precision in AUTOCAST:
        network = copy.copy(network)
        # a dictionary of its own: the model given keeps its layers
        network._modules = {**network._modules, "out": _InFloat32(network.get_submodule("out"))}
    if compiled_for is not None:
        network = cast(nn.Module, torch.compile(network, fullgraph=True))
    changed = copy.copy(predictor)
    changed.network = _InPrecision(network, precision, device)
    if compiled_for is not None:
        _require_compiler(changed, compiled_for)
    return changed


def _require_compiler(predictor: NoisePredictor, image_shape: tuple[int, int, int]) -> None:
    """Compile on two images, so that a machine that cannot compile fails before the work begins."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler, TritonMissing

    images = torch.zeros(2, *image_shape, device=predictor.device)
    try:
        with torch.no_grad():
            predictor.predicted_noise(
                images, predictor.timesteps[0], torch.zeros(2, dtype=torch.long, device=predictor.device)
            )
    except (TorchDynamoException, InductorError, InvalidCxxCompiler, CppCompileError, TritonMissing) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParamsError(
            f"params.yaml: sbg.compile is true, but torch.compile fails here ({type(error).__name__}: {reason}); it needs "
            "a C++ compiler (g++, or the one that CXX names) on the CPU and Triton on a GPU. Install one, or set "
            "sbg.compile: false"
        ) from error


def direction_check(
    predictor: NoisePredictor, changed: NoisePredictor, split: Split, *, timestep: int, batch_size: int, seed: int
) -> dict[str, float]:
    """How the direction of Eq. 8 by `changed` agrees with that of `predictor` in float32, on the first images of `split`.

    `precision_cosine_mean` and `_min` over images and `compared_classes`, and `precision_difference_ratio`, the mean of
    |eps_c - eps_none| / |eps_none|: the error is about that of the precision divided by it.
    """
    data = split.to(predictor.device)
    images = data.pixels(slice(0, SAMPLE))
    noise = torch.randn(images.shape, generator=generator(images.device, seed, "precision check"), device=images.device)
    exact = in_precision(predictor, precision="float32")
    cosines, ratios = [], []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        classes = compared_classes(data.labels[rows][: len(images[rows])], predictor.no_class)
        reference, found = (
            score_based_gradients(model, images[rows], timestep=timestep, noise=noise[rows], classes=classes)
            for model in (exact, changed)
        )
        cosines.append(cosine_similarity(found, reference))
        none = torch.full((len(images[rows]),), predictor.no_class, device=images.device)
        with torch.no_grad():
            unconditional = exact.predicted_noise(exact.noised(images[rows], timestep, noise[rows]), timestep, none)
        ratios.append(reference.flatten(2).norm(dim=2) / unconditional.flatten(1).norm(dim=1)[:, None])
    cosine = torch.cat(cosines)
    return {
        "precision_cosine_mean": cosine.mean().item(),
        "precision_cosine_min": cosine.min().item(),
        "precision_difference_ratio": torch.cat(ratios).mean().item(),
        "precision_images": len(images),
    }


def require_direction(measured: dict[str, float], precision: str, min_cosine: float) -> None:
    """Raise ParamsError if the mean cosine with float32 is below `min_cosine`, or is not a number."""
    mean = measured["precision_cosine_mean"]
    if not mean >= min_cosine:
        raise ParamsError(
            f"params.yaml: sbg.precision {precision} changes the direction of the gradients: mean cosine with float32 "
            f"{mean:.5f} (lowest {measured['precision_cosine_min']:.5f}) on {measured['precision_images']} images, where the "
            f"difference of two predictions is {measured['precision_difference_ratio']:.3f} of one; sbg.min_cosine asks for "
            f"{min_cosine}. Set sbg.precision: {'tf32 or float32' if precision != 'tf32' else 'float32'}, or a later "
            "sbg.timestep, where the difference is larger"
        )

"""Distillation of score-based gradients: C+1 predictions of an image in one batch, against one forward pass per class."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.arithmetic import PEAK_TFLOPS, counted_flops, device_figures
from benchmarks.interleaved import interleaved, prepare
from benchmarks.measurement import Measurement, report
from pag_core.compute.randomness import generator
from pag_core.diffusion.network import NoisePredictor, build_network
from pag_core.gradients.score_based import score_based_gradients
from pag_core.pipeline.stage import run

SEED = 3407
TIMESTEP = 300
COMMON = {"dropout": 0.0, "timesteps": 1000, "timestep_window": None}
NETWORKS: dict[str, dict[str, Any]] = {
    # that of params.yaml
    "small": {
        **COMMON, "channels": 32, "channel_multipliers": [1, 1], "residual_blocks": 1, "attention_resolutions": [],
        "attention_heads": 1,
        "learn_sigma": False, "schedule": "linear",
    },
    # improved-diffusion's for CIFAR-10 (Appendix G.2)
    "paper": {
        **COMMON, "channels": 128, "channel_multipliers": [1, 2, 2, 2], "residual_blocks": 3,
        "attention_resolutions": [16, 8], "attention_heads": 4, "learn_sigma": True, "schedule": "cosine",
    },
}  # fmt: skip
PLAIN = {
    "class_by_class": "one forward pass for each class",
    "image_by_image": "one forward pass for each image and class",
}
TOLERANCE = 1e-3


def build_predictor(network: str, classes: int, side: int, device: torch.device) -> NoisePredictor:
    """A predictor with random weights everywhere, also where a new network starts at zero and would predict nothing."""
    torch.manual_seed(SEED)
    built = build_network(NETWORKS[network], (3, side, side), classes)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    names = [f"class {label}" for label in range(classes)]
    return NoisePredictor({**NETWORKS[network], "class_names": names}, built, device)


@torch.no_grad()
def plain_gradients(predictor: NoisePredictor, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 8 written down directly: a loop over labels, the noise used again for each; float32 [B, classes, 3, H, W]."""
    kept = torch.tensor(predictor.noising.alphas_cumprod[TIMESTEP], dtype=torch.float32)
    noised = kept.sqrt() * (2 * images - 1) + (1 - kept).sqrt() * noise
    timesteps = torch.full((len(images),), TIMESTEP * 1000 / predictor.noising.num_timesteps, device=images.device)
    predicted = []
    for label in range(predictor.no_class + 1):
        labels = torch.full((len(images),), label, device=images.device)
        predicted.append(predictor.network(noised, timesteps, labels)[:, :3])
    return torch.stack([predicted[-1] - conditional for conditional in predicted[:-1]], dim=1)


def plain_gradients_by_image(predictor: NoisePredictor, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As `plain_gradients`, for one image after the other."""
    pairs = zip(images.split(1), noise.split(1), strict=True)
    return torch.cat([plain_gradients(predictor, image, draw) for image, draw in pairs])


def project_gradients(
    predictor: NoisePredictor, images: torch.Tensor, noise: torch.Tensor, *, bf16: bool = False
) -> torch.Tensor:
    """The project's own, the only place that calls it."""
    reduced: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if bf16:
        reduced = torch.autocast(images.device.type, torch.bfloat16)
    with reduced:
        return score_based_gradients(predictor, images, timestep=TIMESTEP, noise=noise)


def measure(
    network: str,
    *,
    classes: int,
    side: int,
    batch_size: int,
    rounds: int,
    device: torch.device,
    peak_tflops: float | None,
) -> dict[str, Measurement]:
    """Time of a batch of images both ways; raises RuntimeError where they do not give the same gradients."""
    predictor = build_predictor(network, classes, side, device)
    draws = generator("cpu", SEED, "benchmark images")
    images = torch.rand(batch_size, 3, side, side, generator=draws).to(device)
    noise = torch.randn(batch_size, 3, side, side, generator=draws).to(device)
    variants: dict[str, Callable[[], Any]] = {
        "batched": lambda: project_gradients(predictor, images, noise),
        "class_by_class": lambda: plain_gradients(predictor, images, noise),
        "image_by_image": lambda: plain_gradients_by_image(predictor, images, noise),
    }
    if device.type == "cuda":
        variants["batched_bf16"] = lambda: project_gradients(predictor, images, noise, bf16=True)
    own, plain = variants["batched"](), variants["class_by_class"]()
    difference = float((own - plain).norm() / plain.norm())
    # on a GPU TF32 rounds both ways, each in its own order
    if not difference <= (0.1 if device.type == "cuda" else TOLERANCE):
        raise RuntimeError(f"the gradients differ from the plain ones by {difference:.2g}")
    flops = counted_flops(variants["class_by_class"])
    timed = interleaved(variants, rounds=rounds, warm_up=1, device=device)
    what = f"{batch_size} images 3x{side}x{side}, {classes} classes, the {network} network"
    found = {"batched.difference": Measurement(difference, "relative", "gradients of one forward pass for each class")}
    for name in variants:
        if name not in PLAIN:
            found.update(
                {
                    f"{name}.speedup_over_{other}": timed.speedup(name, other, f"{how}, {what}")
                    for other, how in PLAIN.items()
                }
            )
        figures = device_figures(
            seconds=timed.median(name),
            images=batch_size,
            executed_flops=flops,
            floor_flops=flops,
            peak_tflops=peak_tflops,
            epoch_name="seconds_per_50000_images",
        )
        found.update({f"{name}.{key}": figure for key, figure in figures.items()})
    return found


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    network: Annotated[str | None, typer.Option(help="small (params.yaml's) or paper; paper on a GPU.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once; 4 on the CPU, 128 on a GPU.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of timing.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak; 790 on a GPU.")] = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="2 images of 8x8 pixels, 1 round: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare the batched predictions of distillation with a plain loop over classes."""
    on_gpu = device.startswith("cuda")
    chosen = network or ("paper" if on_gpu else "small")
    if chosen not in NETWORKS:
        raise typer.BadParameter(f"{chosen!r} is not one of: {', '.join(NETWORKS)}", param_hint="--network")
    found = measure(
        chosen,
        classes=3 if smallest else 10,
        side=8 if smallest else 32,
        batch_size=2 if smallest else batch_size or (128 if on_gpu else 4),
        rounds=1 if smallest else rounds,
        device=prepare(device, threads),
        peak_tflops=peak_tflops or (PEAK_TFLOPS if on_gpu else None),
    )
    report("distillation", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)

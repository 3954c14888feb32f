"""Score-Based Gradients (SBG, Section 4.2, Eq. 8): conditional minus unconditional score of a noisy image."""

from collections.abc import Iterator

import torch

from pag_core.diffusion.network import NoisePredictor


@torch.no_grad()
def score_based_gradients(
    predictor: NoisePredictor, images: torch.Tensor, *, timestep: int, noise: torch.Tensor
) -> torch.Tensor:
    """`eps(x_t, t, none) - eps(x_t, t, c)` for every class c: the gradient of Eq. 8 up to a positive factor.

    `images` float [B, C, H, W] in [0, 1]; `noise` standard normal of that shape, shared by all classes of an image.
    Returns float32 [B, classes, C, H, W]. The C+1 predictions of an image run in one batch.
    """
    labels = predictor.no_class + 1
    noised = predictor.noised(images, timestep, noise).repeat_interleave(labels, dim=0)
    every_label = torch.arange(labels, device=images.device).repeat(len(images))
    predicted: torch.Tensor = (
        predictor.predicted_noise(noised, timestep, every_label).float().unflatten(0, (len(images), labels))
    )
    return predicted[:, -1:] - predicted[:, :-1]


def averaged_batches(
    predictor: NoisePredictor,
    images: torch.Tensor,
    *,
    timestep: int,
    draws: int,
    batch_size: int,
    noise_stream: torch.Generator,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Eq. 8 averaged over `draws` noise draws: float32 [B, classes, C, H, W] for each run of `batch_size` images.

    All noise comes from `noise_stream` in the order of draws, so that the result does not depend on the batch size.
    """
    if draws < 1:
        raise ValueError(f"draws must be positive, not {draws}")
    noises = [torch.randn(images.shape, generator=noise_stream, device=images.device) for _ in range(draws)]
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        total: torch.Tensor | None = None
        for noise in noises:
            gradients = score_based_gradients(predictor, images[rows], timestep=timestep, noise=noise[rows])
            total = gradients if total is None else total + gradients
        assert total is not None
        yield rows, total / draws


def averaged_score_based_gradients(
    predictor: NoisePredictor,
    images: torch.Tensor,
    *,
    timestep: int,
    draws: int,
    batch_size: int,
    noise_stream: torch.Generator,
) -> torch.Tensor:
    """All of `averaged_batches` at once: float32 [N, classes, C, H, W]."""
    batches = averaged_batches(
        predictor, images, timestep=timestep, draws=draws, batch_size=batch_size, noise_stream=noise_stream
    )
    return torch.cat([gradients for _, gradients in batches])

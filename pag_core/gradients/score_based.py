"""Score-Based Gradients (SBG, Section 4.2, Eq. 8): conditional minus unconditional score of a noisy image."""

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


@torch.no_grad()
def averaged_score_based_gradients(
    predictor: NoisePredictor,
    images: torch.Tensor,
    *,
    timestep: int,
    draws: int,
    batch_size: int,
    noise_stream: torch.Generator,
) -> torch.Tensor:
    """Eq. 8 averaged over `draws` noise draws, `batch_size` images at a time: float32 [N, classes, C, H, W].

    All noise comes from `noise_stream` in the order of draws, so that the result does not depend on the batch size.
    """
    total: torch.Tensor | None = None
    for _ in range(draws):
        noise = torch.randn(images.shape, generator=noise_stream, device=images.device)
        parts = [
            score_based_gradients(
                predictor,
                images[start : start + batch_size],
                timestep=timestep,
                noise=noise[start : start + batch_size],
            )
            for start in range(0, len(images), batch_size)
        ]
        gradients = torch.cat(parts)
        total = gradients if total is None else total + gradients
    if total is None:
        raise ValueError(f"draws must be positive, not {draws}")
    return total / draws

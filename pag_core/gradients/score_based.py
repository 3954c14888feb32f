"""Score-Based Gradients (SBG, Section 4.2, Eq. 8): conditional minus unconditional score of a noisy image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pag_core.diffusion.network import NoisePredictor
from pag_core.params.sections import ScoreBasedParams

COMPARED = 10  # classes of an image at most on which a model is checked: its cost is not to grow with their number


def compared_classes(labels: torch.Tensor, classes: int) -> torch.Tensor | None:
    """Of `classes` those on which a model is checked on images of `labels` int64 [B]: None for all, or int64 [B, COMPARED]:
    an image's own and the next ones.
    """
    if classes <= COMPARED:
        return None
    return (labels[:, None] + torch.arange(COMPARED, device=labels.device)) % classes


@torch.no_grad()
def score_based_gradients(
    predictor: NoisePredictor,
    images: torch.Tensor,
    *,
    timestep: int,
    noise: torch.Tensor,
    classes: torch.Tensor | None = None,
) -> torch.Tensor:
    """`eps(x_t, t, none) - eps(x_t, t, c)` for every class c: the gradient of Eq. 8 up to a positive factor.

    `images` float [B, C, H, W] in [0, 1]; `noise` standard normal of that shape, shared by all classes of an image;
    `classes` int64 [B, K], or None for all. Returns float32 [B, K, C, H, W]. The K+1 predictions of an image run in one
    batch.
    """
    if classes is None:
        classes = torch.arange(predictor.no_class, device=images.device).expand(len(images), -1)
    labels = torch.cat([classes, torch.full_like(classes[:, :1], predictor.no_class)], dim=1)
    noised = predictor.noised(images, timestep, noise).repeat_interleave(labels.shape[1], dim=0)
    predicted: torch.Tensor = (
        predictor.predicted_noise(noised, timestep, labels.flatten()).float().unflatten(0, tuple(labels.shape))
    )
    return predicted[:, -1:] - predicted[:, :-1]


def drawn_noise(
    image_shape: torch.Size | tuple[int, ...], sbg: ScoreBasedParams, draws: torch.Generator
) -> torch.Tensor:
    """The noise of all noise levels and draws for a batch of `image_shape` [B, C, H, W]: float32 [T, D, B, C, H, W]."""
    parts = [
        torch.randn(image_shape, generator=draws, device=draws.device) for _ in range(len(sbg.timesteps) * sbg.draws)
    ]
    noise: torch.Tensor = torch.stack(parts).unflatten(0, (len(sbg.timesteps), sbg.draws))
    return noise


def averaged_gradients(
    predictor: NoisePredictor,
    images: torch.Tensor,
    sbg: ScoreBasedParams,
    noise: torch.Tensor,
    classes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Eq. 8 averaged over the draws of `noise` (as `drawn_noise` gives it): float32 [B, K, C, H, W].

    Of several noise levels the averages are scaled to unit length for each image and class and averaged again, so that
    each level has the same say. The expected gradient of Eq. 5 is then, but for one factor for each image and class, that
    of drawing a level at random at every step.
    """
    levels = []
    for timestep, of_level in zip(sbg.timesteps, noise, strict=True):
        parts = (
            score_based_gradients(predictor, images, timestep=timestep, noise=part, classes=classes)
            for part in of_level
        )
        total = next(parts)
        for part in parts:
            total = total + part
        levels.append(total / len(of_level))
    if len(levels) == 1:
        return levels[0]
    directions = [torch.nn.functional.normalize(level.flatten(2), dim=2).view_as(level) for level in levels]
    return torch.stack(directions).mean(0)


def averaged_batches(
    predictor: NoisePredictor,
    images: torch.Tensor,
    sbg: ScoreBasedParams,
    *,
    noise_stream: torch.Generator,
    classes: torch.Tensor | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """`averaged_gradients` for each run of `sbg.batch_size` of `images`, with its place among them.

    All noise comes from `noise_stream` first, so that the result does not depend on the batch size.
    """
    noise = drawn_noise(images.shape, sbg, noise_stream)
    for start in range(0, len(images), sbg.batch_size):
        rows = slice(start, min(start + sbg.batch_size, len(images)))
        chosen = None if classes is None else classes[rows]
        yield rows, averaged_gradients(predictor, images[rows], sbg, noise[:, :, rows], chosen)


@dataclass(frozen=True)
class ScoreBased:
    """Eq. 8 of one model for the distillation, with the noise levels and draws of `sbg`."""

    predictor: NoisePredictor
    sbg: ScoreBasedParams

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return self.predictor.device

    def batches(
        self, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, draws: torch.Generator
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """As `averaged_batches`; whether an image is of a class makes no difference."""
        return averaged_batches(self.predictor, images, self.sbg, noise_stream=draws, classes=classes)

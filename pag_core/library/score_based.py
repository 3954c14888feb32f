"""Eq. 8 of any noise predictor: score-based gradients as a function of images, labels and classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pag_core.diffusion.network import NoisePredictor
from pag_core.errors import ParamsError, ShapeMismatch
from pag_core.gradients.label_effect import label_effect, over_levels, require_label_effect
from pag_core.gradients.score_based import averaged_gradients, drawn_noise
from pag_core.library.user_data import as_split
from pag_core.params.sections import ScoreBasedParams

# noise(x_t, t, y): the noise predicted in x_t float [B, C, H, W] at t [B] under labels y int64 [B]
Noise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# unconditional(x_t, t): the same without a label
Unconditional = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class VarianceExploding:
    """The schedule x_t = x + t * noise: the noise level t is its standard deviation, sigma (EDM; Song et al., 2021)."""


class ScoreBased:
    """Score-based gradients (Eq. 8) of any conditional noise predictor, as `write_gradients` takes them.

    `noise(x_t, t, y)` returns the predicted noise [B, C, H, W] (channels beyond C, a learned variance, are left out).
    `schedule` is alphas_cumprod float [T] of x_t = sqrt(a_t) x + sqrt(1 - a_t) noise, with integers t, or `VarianceExploding()`
    with t = sigma. `at` is the noise level, or several that have the same say. Without `unconditional(x_t, t)` no class is
    asked for as label C = `num_classes`. `pixel_range` is that of the images that the model was trained on. `draws` of noise
    are averaged. Raises ParamsError for a level that the schedule does not have.
    """

    def __init__(
        self,
        noise: Noise,
        schedule: torch.Tensor | VarianceExploding,
        at: float | Sequence[float],
        *,
        num_classes: int,
        unconditional: Unconditional | None = None,
        draws: int = 1,
        pixel_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        levels = tuple(at) if isinstance(at, Sequence) else (at,)
        for level in levels:
            _require_level(level, schedule)
        if draws < 1 or not levels:
            raise ParamsError(f"draws is {draws} and at is {at!r}; both must be at least one")
        self.predictor = _Callables(noise, unconditional, schedule, num_classes, pixel_range)
        # of its fields these two alone are used
        self.sbg = ScoreBasedParams.model_construct(timesteps=levels, draws=draws)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """g(x, c) up to a positive factor for images float [B, C, H, W] in [0, 1] and classes int64 [B, K]: [B, K, C, H, W].

        The noise is drawn from torch's global generator of the CPU; `labels` are not used.
        """
        noise = drawn_noise(images.shape, self.sbg, torch.default_generator).to(images.device)
        return averaged_gradients(self.predictor, images, self.sbg, noise, classes)

    def require_label_effect(
        self, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 64, seed: int = 0
    ) -> dict[str, float]:
        """What the label does to the error of the predicted noise, as metrics/diffusion.json has it, on held-out images.

        `images` float [N, C, H, W] in [0, 1], on the model's device, of every class. Raises LabelIgnored unless the error is
        lowest with the right label, higher without one and highest with a wrong one: Eq. 8 would be noise.
        """
        split, _ = as_split(images, labels)
        self.predictor.device = images.device
        levels = [
            label_effect(self.predictor, split, timestep=level, batch_size=batch_size, seed=seed)
            for level in self.sbg.timesteps
        ]
        for level, measured in zip(self.sbg.timesteps, levels, strict=True):
            require_label_effect(measured, f"the noise predictor at t = {level}")
        return over_levels(levels)


def _require_level(level: float, schedule: torch.Tensor | VarianceExploding) -> None:
    if isinstance(schedule, VarianceExploding):
        if level <= 0:
            raise ParamsError(f"at is {level}; it is a standard deviation and must be positive")
    elif level != int(level) or not 0 <= level < len(schedule):
        raise ParamsError(f"at is {level}; the schedule has the timesteps 0 to {len(schedule) - 1}")


class _Callables(NoisePredictor):
    """A user's callables with the interface of the pipeline's own model."""

    def __init__(
        self,
        noise: Noise,
        unconditional: Unconditional | None,
        schedule: torch.Tensor | VarianceExploding,
        classes: int,
        pixel_range: tuple[float, float],
    ) -> None:
        self.noise = noise
        self.unconditional = unconditional
        self.schedule = schedule
        self.classes = classes
        self.low, self.high = pixel_range

    @property
    def no_class(self) -> int:
        return self.classes

    def noised(self, images: torch.Tensor, timestep: float, noise: torch.Tensor) -> torch.Tensor:
        """x_t of images float [B, C, H, W] in [0, 1]."""
        pixels = images * (self.high - self.low) + self.low
        if isinstance(self.schedule, VarianceExploding):
            return pixels + timestep * noise
        keep = float(self.schedule[int(timestep)])
        return float(keep**0.5) * pixels + float((1 - keep) ** 0.5) * noise

    def predicted_noise(self, noised_images: torch.Tensor, timestep: float, labels: torch.Tensor) -> torch.Tensor:
        """eps of x_t under labels int64 [B], of which C means "no class"."""
        dtype = torch.float32 if isinstance(self.schedule, VarianceExploding) else torch.int64
        levels = torch.full((len(noised_images),), timestep, dtype=dtype, device=noised_images.device)
        if self.unconditional is None:
            return _of_images(self.noise(noised_images, levels, labels), noised_images)
        predicted, none = torch.empty_like(noised_images), labels == self.classes
        if none.any():
            x_t = noised_images[none]
            predicted[none] = _of_images(self.unconditional(x_t, levels[none]), x_t)
        if not none.all():
            x_t, has = noised_images[~none], ~none
            predicted[has] = _of_images(self.noise(x_t, levels[has], labels[has]), x_t)
        return predicted


def _of_images(predicted: torch.Tensor, noised_images: torch.Tensor) -> torch.Tensor:
    """The predicted noise without further channels; raises ShapeMismatch for anything else."""
    if not isinstance(predicted, torch.Tensor):
        raise ShapeMismatch(f"the noise predictor returns a {type(predicted).__name__}; return the tensor in it")
    channels = noised_images.shape[1]
    found = predicted[:, :channels] if predicted.dim() == 4 else predicted
    if found.shape != noised_images.shape:
        raise ShapeMismatch(
            f"the noise predictor returns {list(predicted.shape)} for x_t {list(noised_images.shape)}; it must be of that shape"
        )
    return found

"""Score-based gradients without a store (`source: sbg_online`): the teacher is asked in the training step itself."""

import torch

from pag_core.datasets.prepared import Dataset
from pag_core.diffusion.network import NoisePredictor, load_noise_predictor
from pag_core.gradient_store.store import GradientStore
from pag_core.gradient_store.targets import Targets
from pag_core.gradient_store.writer import TEACHER
from pag_core.gradients.distillation_precision import in_precision
from pag_core.gradients.score_based import averaged_gradients, drawn_noise
from pag_core.params.sections import ScoreBasedParams


class OnlineGradients(Targets):
    """Eq. 8 of the very images that are trained on, augmented, for the classes of a step, with noise drawn anew."""

    def __init__(self, teacher: NoisePredictor, sbg: ScoreBasedParams) -> None:
        self.teacher = teacher
        self.sbg = sbg

    def noise(self, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor:
        """The noise of a batch of `shape` [B, C, H, W], on the CPU: float32 [T, D, B, C, H, W]."""
        return drawn_noise(shape, self.sbg, draws)

    def gradients(self, images: torch.Tensor, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """float32 [B, K, C, H, W] for images float [B, C, H, W] in [0, 1] and classes int64 [B, K]."""
        return averaged_gradients(self.teacher, images, self.sbg, noise, classes)


def open_online(store: GradientStore, dataset: Dataset, device: torch.device) -> OnlineGradients:
    """The teacher that `store` holds, with the noise levels, draws and precision that it was checked with.

    Raises StoreError if the store was made from another dataset, and WeightsError if its teacher is damaged.
    """
    teacher, saved = load_noise_predictor(store.path / TEACHER, dataset, device)
    store.require_made_from(dataset, {"diffusion model": saved.fingerprint})
    sbg = ScoreBasedParams.model_validate(store.manifest["provenance"]["params"]["sbg"])
    compiled_for = dataset.image_shape if sbg.compile else None
    return OnlineGradients(in_precision(teacher, precision=sbg.precision, compiled_for=compiled_for), sbg)

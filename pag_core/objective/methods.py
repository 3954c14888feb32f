"""The classification part of the loss, to which Eq. 4 adds its alignment term (Section 6): what rivals differ in.

`standard` is cross-entropy; `at` adversarial training (Madry et al., 2018); `trades` (Zhang et al., 2019);
`gradient_norm` penalises the norm of the cross-entropy's input-gradient (Rodriguez-Munoz et al., 2024);
`gaussian_noise` adds noise to the images (Cohen et al., 2019).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pag_core.objective.inner_attack import adversarial_examples, attacked, projected, start_beside, start_in_ball
from pag_core.objective.input_gradient import logits_of
from pag_core.params.radii import radius_value
from pag_core.params.sections import (
    AdversarialTrainingParams,
    GaussianNoiseParams,
    GradientNormParams,
    Params,
    TradesParams,
)
from pag_core.params.values import MethodName


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on the images as they are."""

    wants_clean = True
    wants_gradient = False

    def start(self, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor | None:
        """What is drawn for each image, float32 [B, C, H, W] relative to it: an attack's start or noise; None draws nothing."""
        return None

    def loss(self, step: "ClassificationStep") -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, a scalar, and the logits [B, classes] that the training accuracy counts."""
        logits = step.clean_logits()
        return F.cross_entropy(logits, step.labels), logits


@dataclass(frozen=True, kw_only=True)
class ClassificationStep:
    """What a method's loss is computed from; `logits` and `loss_gradient` where the shared forward pass made them.

    `loss_gradient` is the input-gradient of each image's cross-entropy, float [B, C, H, W]; `start` what the method drew;
    `epoch` is counted from 0; `compiled` says whether `classifier` is by torch.compile.
    """

    classifier: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor | None
    loss_gradient: torch.Tensor | None
    start: torch.Tensor | None
    epoch: int
    compiled: bool = False

    def clean_logits(self) -> torch.Tensor:
        """The logits of the images as they are."""
        assert self.logits is not None
        return self.logits


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy on adversarial examples by PGD that raise it; the training accuracy is that on them."""

    params: AdversarialTrainingParams
    wants_clean = False
    wants_gradient = False

    def start(self, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor | None:
        """A point of the unit ball, or None where the attack begins at the image."""
        return start_in_ball(self.params.norm, shape, draws) if self.params.random_start else None

    def loss(self, step: ClassificationStep) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Standard.loss`."""
        images, params = step.images.detach(), self.params
        share = _warmed_up(step.epoch, params.warmup_epochs)
        begin = images
        if step.start is not None:
            radius = share * radius_value(params.radius)
            begin = projected(images + radius * step.start, images, params.norm, radius)
        with attacked(step.classifier, params.mode, compiled=step.compiled):
            adversarial = adversarial_examples(
                lambda pixels: logits_of(step.classifier, pixels),
                images,
                begin,
                lambda logits: F.cross_entropy(logits, step.labels, reduction="sum"),
                params,
                share,
            )
        logits = logits_of(step.classifier, adversarial)
        return F.cross_entropy(logits, step.labels), logits


@dataclass(frozen=True)
class Trades:
    """Cross-entropy on the images, and `beta` times the KL divergence of the answers to them and to adversarial examples."""

    params: TradesParams
    wants_clean = True
    wants_gradient = False

    def start(self, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor | None:
        """Noise beside the image, for at the image itself the divergence has no gradient."""
        return start_beside(shape, draws)

    def loss(self, step: ClassificationStep) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Standard.loss`."""
        images, params, clean = step.images.detach(), self.params, step.clean_logits()
        assert step.start is not None
        with attacked(step.classifier, params.mode, compiled=step.compiled):
            with torch.no_grad():
                reference = logits_of(step.classifier, images).softmax(1)
            adversarial = adversarial_examples(
                lambda pixels: logits_of(step.classifier, pixels),
                images,
                images + step.start,
                lambda logits: F.kl_div(logits.log_softmax(1), reference, reduction="sum"),
                params,
            )
        answers = logits_of(step.classifier, adversarial).log_softmax(1)
        divergence = F.kl_div(answers, clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, step.labels) + params.beta * divergence, clean


@dataclass(frozen=True)
class GradientNorm(Standard):
    """Cross-entropy, and `weight` times the norm of each image's input-gradient of it, averaged over the batch."""

    params: GradientNormParams
    wants_gradient = True

    def weight_in(self, epoch: int) -> float:
        """The weight in `epoch`, counted from 0: it rises linearly over the warm-up's epochs."""
        return self.params.weight * _warmed_up(epoch, self.params.warmup_epochs)

    def loss(self, step: ClassificationStep) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Standard.loss`."""
        logits = step.clean_logits()
        assert step.loss_gradient is not None
        gradient = step.loss_gradient.float() if step.loss_gradient.dtype != torch.float64 else step.loss_gradient
        flat = gradient.flatten(1)
        # the square root of a sum of squares has no derivative at zero
        norms = flat.abs().sum(1) if self.params.norm == "L1" else flat.square().sum(1).clamp_min(1e-24).sqrt()
        return F.cross_entropy(logits, step.labels) + self.weight_in(step.epoch) * norms.mean(), logits


@dataclass(frozen=True)
class GaussianNoise(Standard):
    """Cross-entropy on images with normal noise, drawn anew in each step and not clipped; the accuracy is that on them."""

    params: GaussianNoiseParams
    wants_clean = False

    def start(self, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor | None:
        """Standard normal noise."""
        return torch.randn(shape, generator=draws)

    def loss(self, step: ClassificationStep) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Standard.loss`."""
        assert step.start is not None
        logits = logits_of(step.classifier, step.images + self.params.sigma * step.start)
        return F.cross_entropy(logits, step.labels), logits


Method = Standard | AdversarialTraining | Trades | GradientNorm | GaussianNoise

STANDARD = Standard()


def build_method(name: MethodName, params: Params) -> Method:
    """The method of that name, with the parameters of its section."""
    match name:
        case "standard":
            return STANDARD
        case "at":
            return AdversarialTraining(params.at)
        case "trades":
            return Trades(params.trades)
        case "gradient_norm":
            return GradientNorm(params.gradient_norm)
        case "gaussian_noise":
            return GaussianNoise(params.gaussian_noise)


def _warmed_up(epoch: int, warmup_epochs: int) -> float:
    """What is in force in `epoch`, counted from 0: it rises linearly to 1, which the first epoch after the warm-up has."""
    return min(1.0, (epoch + 1) / (warmup_epochs + 1))

"""Eq. 8 of any noise predictor: the pipeline's own numbers, small stand-ins for diffusers and EDM, and an exact mixture."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pag_core import ScoreBased, VarianceExploding
from pag_core.errors import LabelIgnored, ParamsError, ShapeMismatch
from pag_core.gradients.score_based import score_based_gradients
from tests.fixtures.noise_predictors import ALPHAS_CUMPROD, EDM, DiffusersUNet, Mixture


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([[2, 0], [1, 2], [0, 1], [1, 0]])
LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_the_pipelines_own_model_by_its_callables_gives_the_pipelines_gradients(
    dataset, make_predictor, images, learn_sigma
):
    predictor = make_predictor(dataset, learn_sigma=learn_sigma)
    schedule = torch.from_numpy(predictor.noising.alphas_cumprod)
    source = ScoreBased(lambda x_t, t, y: predictor.network(x_t, t.float(), y), schedule, 300, num_classes=3)
    torch.manual_seed(7)
    found = source(images, LABELS, CLASSES)
    torch.manual_seed(7)
    noise = torch.randn(images.shape)
    expected = score_based_gradients(predictor, images, timestep=300, noise=noise, classes=CLASSES)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6) and expected.norm() > 1e-2
    labels = torch.arange(12) % 3
    many = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with pytest.raises(LabelIgnored, match="the noise predictor at t = 300 does not use its label"):
        source.require_label_effect(many, labels)


MEANS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def by_hand(images, noise, keep, spread):
    """Eq. 8, grad log p(x_t | y) - grad log p(x_t), times the spread, one image and class at a time."""
    x_t, mixture = keep * (2 * images - 1) + spread * noise, Mixture(MEANS)
    rows = []
    for b, classes in enumerate(CLASSES):
        one, levels = x_t[b : b + 1].double(), (torch.tensor([keep]).double(), torch.tensor([spread]).double())
        none = mixture.noise(one, *levels, None)
        rows.append(torch.cat([none - mixture.noise(one, *levels, label[None]) for label in classes]))
    return torch.stack(rows).float()


def diffusers_source(at=400, draws=1):
    unet = DiffusersUNet(MEANS)
    source = ScoreBased(
        lambda x_t, t, y: unet(x_t, t, class_labels=y).sample, ALPHAS_CUMPROD, at, num_classes=3, draws=draws
    )
    return source, ALPHAS_CUMPROD[400].sqrt().item(), (1 - ALPHAS_CUMPROD[400]).sqrt().item()


def edm_source():
    conditional, unconditional = EDM(MEANS, conditional=True), EDM(MEANS, conditional=False)

    def noise(x_t, sigma, y):
        denoised = conditional(x_t, sigma, nn.functional.one_hot(y, 3))
        return (x_t - denoised) / sigma[:, None, None, None]

    def noise_of_none(x_t, sigma):
        return (x_t - unconditional(x_t, sigma)) / sigma[:, None, None, None]

    return ScoreBased(noise, VarianceExploding(), 0.8, num_classes=3, unconditional=noise_of_none), 1.0, 0.8


@pytest.mark.parametrize("make", [diffusers_source, edm_source])
def test_other_libraries_predictors_give_eq_8(images, make):
    source, keep, spread = make()
    torch.manual_seed(7)
    found = source(images, LABELS, CLASSES)
    torch.manual_seed(7)
    expected = by_hand(images, torch.randn(images.shape), keep, spread)
    assert found.shape == (4, 2, 1, 8, 8) and not found.requires_grad
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4) and expected.flatten(2).norm(dim=2).median() > 0.1


@pytest.mark.parametrize("make", [diffusers_source, edm_source])
def test_the_effect_of_the_label_is_measured_as_the_pipeline_does(make):
    source, *_ = make()
    labels = torch.arange(60) % 3
    draws = torch.Generator().manual_seed(5)
    images = ((MEANS[labels] + 0.3 * torch.randn(60, 1, 8, 8, generator=draws)) / 2 + 0.5).clamp(0, 1)
    measured = source.require_label_effect(images, labels)
    assert measured["held_out_error_conditional"] < measured["held_out_error_unconditional"]
    assert measured["images"] == 60


def test_several_levels_and_draws_have_the_same_say(images):
    """The mean of unit directions, each of which is the mean over the draws."""

    def source(at, draws=1):
        return diffusers_source(at, draws)[0]

    torch.manual_seed(7)
    found = source([200, 400], draws=2)(images, LABELS, CLASSES)
    torch.manual_seed(7)
    levels = []
    for at in (200, 400):
        mean = (source(at)(images, LABELS, CLASSES) + source(at)(images, LABELS, CLASSES)) / 2
        levels.append(mean / mean.flatten(2).norm(dim=2)[..., None, None, None])
    assert torch.allclose(found, (levels[0] + levels[1]) / 2, rtol=1e-4, atol=1e-6)


def nothing(x_t, t, y):
    return torch.zeros_like(x_t)


SCHEDULE = torch.linspace(0.9, 0.1, 10)


@pytest.mark.parametrize(
    ("schedule", "at", "draws", "message"),
    [
        (SCHEDULE, 10, 1, "at is 10; the schedule has the timesteps 0 to 9"),
        (SCHEDULE, [3, 4.5], 1, "at is 4.5; the schedule"),
        (VarianceExploding(), 0.0, 1, "at is 0.0; it is a standard deviation"),
        (SCHEDULE, [], 1, "must be at least one"),
        (SCHEDULE, 1, 0, "draws is 0"),
    ],
)
def test_a_noise_level_that_there_is_not_is_refused(schedule, at, draws, message):
    with pytest.raises(ParamsError, match=message):
        ScoreBased(nothing, schedule, at, num_classes=3, draws=draws)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (lambda x_t, t, y: x_t[..., :4], "returns \\[12, 1, 8, 4\\] for x_t \\[12, 1, 8, 8\\]"),
        (lambda x_t, t, y: SimpleNamespace(sample=x_t), "returns a SimpleNamespace; return the tensor in it"),
    ],
)
def test_what_is_no_prediction_of_noise_is_refused(images, noise, message):
    with pytest.raises(ShapeMismatch, match=message):
        ScoreBased(noise, SCHEDULE, 3, num_classes=3)(images, LABELS, CLASSES)


def test_the_range_of_the_models_images_is_said(images):
    seen = []

    def noise(x_t, t, y):
        seen.append(x_t)
        return x_t * (1 + y[:, None, None, None])

    torch.manual_seed(7)
    ScoreBased(noise, SCHEDULE, 3, num_classes=3, pixel_range=(0, 1))(images, LABELS, CLASSES)
    torch.manual_seed(7)
    keep = SCHEDULE[3].item()
    expected = math.sqrt(keep) * images + math.sqrt(1 - keep) * torch.randn(images.shape)
    assert torch.allclose(seen[0][::3], expected, atol=1e-6)

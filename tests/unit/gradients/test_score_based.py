"""Score-based gradients against Eq. 8 by hand and an exact mixture of Gaussians, and whether the label has an effect."""

import math
import statistics

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import NoisePredictor, build_noising
from pag_core.errors import LabelIgnored
from pag_core.gradients.label_effect import error_over_classes, label_effect, over_levels, require_label_effect
from pag_core.gradients.score_based import score_based_gradients
from tests.fixtures.samples import distilled


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("timesteps", [1000, 400])
def test_eq_8_by_hand(dataset, make_predictor, learn_sigma, timesteps):
    """The network is called directly, one image and one label at a time."""
    predictor = make_predictor(dataset, learn_sigma=learn_sigma, timesteps=timesteps)
    images, timestep, torch_noise = dataset.splits["test"].pixels(slice(0, 3)), 150, torch.Generator().manual_seed(1)
    noise = torch.randn(images.shape, generator=torch_noise)
    found = score_based_gradients(predictor, images, timestep=timestep, noise=noise)
    assert found.shape == (3, 3, 1, 8, 8) and found.dtype == torch.float32 and not found.requires_grad
    betas = np.linspace(0.0001 * 1000 / timesteps, 0.02 * 1000 / timesteps, timesteps)
    alpha_bar = np.prod(1 - betas[: timestep + 1])
    time = torch.tensor([timestep * 1000.0 / timesteps])
    for b in range(3):
        x_t = (math.sqrt(alpha_bar) * (2 * images[b] - 1) + math.sqrt(1 - alpha_bar) * noise[b])[None]
        with torch.no_grad():
            eps = [predictor.network(x_t, time, torch.tensor([label]))[0, :1] for label in range(4)]
        for label in range(3):
            by_hand = eps[3] - eps[label]
            assert by_hand.norm() > 1e-3
            assert torch.allclose(found[b, label], by_hand, rtol=1e-3, atol=1e-5)


class ExactMixture(nn.Module):
    """The exact noise prediction of a mixture of Gaussians N(mean_c, width^2) in [-1, 1], label C for no class."""

    def __init__(self, means, width, noising):
        super().__init__()
        self.means, self.width, self.noising = means, width, noising

    def moments(self, timesteps):
        index = round(timesteps[0].item() * self.noising.num_timesteps / 1000)
        keep = float(self.noising.sqrt_alphas_cumprod[index])
        spread = float(self.noising.sqrt_one_minus_alphas_cumprod[index])
        return keep, spread, keep**2 * self.width**2 + spread**2

    def log_joint(self, x_t, timesteps):
        keep, _, variance = self.moments(timesteps)
        return -((x_t[:, None] - keep * self.means) ** 2).flatten(2).sum(2) / (2 * variance)

    def forward(self, x_t, timesteps, y):
        keep, spread, variance = self.moments(timesteps)
        towards = (keep * self.means - x_t[:, None]) / variance
        share = self.log_joint(x_t, timesteps).softmax(1)
        score_none = (share[..., None, None, None] * towards).sum(1)
        classes = len(self.means)
        score = torch.stack(
            [score_none[b] if label == classes else towards[b, label] for b, label in enumerate(y.tolist())]
        )
        return -spread * score


@pytest.fixture
def mixture(make_params):
    draws = torch.Generator().manual_seed(7)
    means = 0.5 * torch.randn(3, 1, 4, 4, generator=draws)
    params = make_params().diffusion.model_dump(mode="json")
    network = ExactMixture(means, 0.3, build_noising(params))
    return NoisePredictor({**params, "class_names": ["a", "b", "c"]}, network, torch.device("cpu")), means, draws


@pytest.mark.parametrize("timestep", [100, 300, 600])
def test_eq_8_is_the_gradient_of_the_log_posterior(mixture, timestep):
    predictor, means, draws = mixture
    labels = torch.arange(12) % 3
    images = ((means[labels] + 0.3 * torch.randn(12, 1, 4, 4, generator=draws)) + 1) / 2
    noise = torch.randn(images.shape, generator=draws)
    found = score_based_gradients(predictor, images, timestep=timestep, noise=noise)
    x_t = predictor.noised(images, timestep, noise).double().requires_grad_()
    time = torch.full((12,), float(timestep))
    log_posterior = predictor.network.log_joint(x_t, time).log_softmax(1)
    for label in range(3):
        (exact,) = torch.autograd.grad(log_posterior[:, label].sum(), x_t, retain_graph=True)
        for b in range(12):
            # where the posterior is one, both vanish
            if exact[b].norm() > 1e-3:
                assert cosine(found[b, label], exact[b]) > 0.999
        # a small step along g makes class c more likely: the sign
        step = 1e-3 * found[:, label] / found[:, label].flatten(1).norm(dim=1).clamp_min(1e-9)[:, None, None, None]
        moved = predictor.network.log_joint((x_t + step).detach(), time).log_softmax(1)[:, label]
        certain = exact.flatten(1).norm(dim=1) <= 1e-3
        assert ((moved > log_posterior[:, label]) | certain).all()


def test_all_classes_share_the_noise(mixture):
    """Under the exact model, differences between classes of one image are known only if x_t is the same for all."""
    predictor, means, draws = mixture
    images, noise = torch.rand(2, 1, 4, 4, generator=draws), torch.randn(2, 1, 4, 4, generator=draws)
    found = score_based_gradients(predictor, images, timestep=300, noise=noise)
    keep, spread, variance = predictor.network.moments(torch.tensor([300.0]))
    expected = spread * keep * (means[1] - means[0]) / variance
    for b in range(2):
        assert torch.allclose(found[b, 1] - found[b, 0], expected, atol=1e-4)


def test_gradients_do_not_depend_on_the_batch_size(dataset, make_predictor):
    predictor, images = make_predictor(dataset), dataset.splits["test"].pixels(slice(0, 7))

    def run(batch_size, draws=2):
        stream = torch.Generator().manual_seed(3)
        return distilled(predictor, images, stream, draws=draws, batch_size=batch_size)

    whole = run(7)
    for batch_size in (1, 3, 100):
        assert torch.allclose(run(batch_size), whole, rtol=1e-4, atol=1e-6)


def test_draws_are_averaged(dataset, make_predictor):
    predictor, images = make_predictor(dataset), dataset.splits["test"].pixels(slice(0, 3))
    stream = torch.Generator().manual_seed(3)
    found = distilled(predictor, images, stream, draws=3)
    stream = torch.Generator().manual_seed(3)
    singles = [
        score_based_gradients(predictor, images, timestep=300, noise=torch.randn(images.shape, generator=stream))
        for _ in range(3)
    ]
    assert torch.allclose(found, sum(singles) / 3, rtol=1e-5, atol=1e-7)
    assert cosine(singles[0], singles[1]) < 0.9999


def test_noise_levels_have_the_same_say(dataset, make_predictor):
    """Means of unit gradients, computed image by image and class by class in float64."""
    predictor, images = make_predictor(dataset), dataset.splits["test"].pixels(slice(0, 3))
    found = distilled(predictor, images, torch.Generator().manual_seed(3), timestep=[50, 300, 700], draws=2)
    stream = torch.Generator().manual_seed(3)
    levels = []
    for timestep in (50, 300, 700):
        noises = [torch.randn(images.shape, generator=stream) for _ in range(2)]
        parts = [score_based_gradients(predictor, images, timestep=timestep, noise=noise) for noise in noises]
        levels.append((parts[0].double() + parts[1].double()) / 2)
    for b in range(3):
        for label in range(3):
            units = [level[b, label] / level[b, label].square().sum().sqrt() for level in levels]
            assert (found[b, label] - sum(units) / 3).abs().max() < 1e-6
    # the levels differ in length, so a plain mean would be another direction
    assert cosine(found[0, 0], sum(level[0, 0] for level in levels)) < 0.999


def test_some_classes_are_those_of_all(dataset, make_predictor):
    predictor, images = make_predictor(dataset), dataset.splits["test"].pixels(slice(0, 3))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    whole = score_based_gradients(predictor, images, timestep=300, noise=noise)
    chosen = torch.tensor([[2, 0], [1, 2], [0, 1]])
    found = score_based_gradients(predictor, images, timestep=300, noise=noise, classes=chosen)
    expected = torch.stack([whole[b, chosen[b]] for b in range(3)])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_label_has_an_effect(dataset, make_predictor):
    predictor, images = make_predictor(dataset), dataset.splits["test"].pixels(slice(0, 2))
    with torch.no_grad():
        by_label = [predictor.predicted_noise(images, 300, torch.full((2,), label)) for label in range(4)]
    for first in range(4):
        for second in range(first):
            difference = (by_label[first] - by_label[second]).norm() / by_label[second].norm()
            assert difference > 1e-3


def mixture_split(means, count):
    draws = torch.Generator().manual_seed(11)
    labels = torch.arange(count) % 3
    images = (means[labels] + 0.3 * torch.randn(count, 1, 4, 4, generator=draws) + 1) / 2
    return Split((images.clamp(0, 1) * 255).round().to(torch.uint8), labels)


def noise_streams():
    return [generator("cpu", 1, f"label effect, {draw} draw") for draw in ("first", "second")]


def test_label_effect_against_a_loop(mixture):
    predictor, means, _ = mixture
    split = mixture_split(means, 9)
    measured = label_effect(predictor, split, timestep=300, batch_size=9, seed=1)
    # neither does a number depend on the size of a batch
    assert measured == pytest.approx(label_effect(predictor, split, timestep=300, batch_size=4, seed=1), rel=1e-5)
    assert measured["images"] == 9 and measured["timestep"] == 300
    first, second = (torch.randn(9, 1, 4, 4, generator=draws) for draws in noise_streams())
    errors, cosines, difference, magnitude, by_image = [0.0] * 3, [], 0.0, 0.0, []
    for b in range(9):
        image, label = split.pixels(slice(b, b + 1)), int(split.labels[b])
        x_t = predictor.noised(image, 300, first[b : b + 1])
        eps = [predictor.predicted_noise(x_t, 300, torch.tensor([c]))[0] for c in (label, 3, (label + 1) % 3)]
        errors = [e + ((p - first[b]) ** 2).mean().item() / 9 for e, p in zip(errors, eps, strict=True)]
        by_image.append([((p.double() - first[b].double()) ** 2).mean().item() for p in eps])
        difference += (eps[0] - eps[1]).norm().item()
        magnitude += eps[1].norm().item()
        pair = [score_based_gradients(predictor, image, timestep=300, noise=n[b : b + 1])[0] for n in (first, second)]
        cosines += [cosine(pair[0][c], pair[1][c]) for c in range(3)]
    names = ("conditional", "unconditional", "wrong_class")
    assert [measured[f"held_out_error_{name}"] for name in names] == pytest.approx(errors, rel=1e-4)
    assert measured["draw_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert measured["relative_difference"] == pytest.approx(difference / magnitude, rel=1e-4)
    differences = [row[2] - row[0] for row in by_image]
    by_class = [statistics.mean(differences[b] for b in range(9) if split.labels[b] == label) for label in range(3)]
    for units, parts in (("images", differences), ("classes", by_class)):
        expected = statistics.stdev(parts) / math.sqrt(len(parts))
        assert measured[f"standard_error_over_{units}"] == pytest.approx(expected, rel=1e-3)


def test_draws_are_compared_on_the_first_images_only(mixture, monkeypatch):
    predictor, means, _ = mixture
    split = mixture_split(means, 12)
    first = label_effect(predictor, mixture_split(means, 12), timestep=300, batch_size=4, seed=1)
    monkeypatch.setattr("pag_core.gradients.label_effect.DRAW_SAMPLE", 6)
    fewer = label_effect(predictor, split, timestep=300, batch_size=4, seed=1)
    assert (first["draw_images"], fewer["draw_images"], fewer["images"]) == (12, 6, 12)
    streams, cosines = noise_streams(), []
    for start, count in ((0, 4), (4, 2)):
        noises = [torch.randn(4, 1, 4, 4, generator=draws)[:count] for draws in streams]
        images = split.pixels(slice(start, start + count))
        one, other = (score_based_gradients(predictor, images, timestep=300, noise=noise) for noise in noises)
        cosines += [cosine(one[b, c], other[b, c]) for b in range(count) for c in range(3)]
    assert fewer["draw_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4) != first["draw_cosine"]
    assert fewer["held_out_error_conditional"] == first["held_out_error_conditional"]


def test_of_many_classes_draws_are_compared_on_an_image_s_own_and_the_next(mixture, monkeypatch):
    predictor, means, _ = mixture
    split = mixture_split(means, 9)
    monkeypatch.setattr("pag_core.gradients.score_based.COMPARED", 2)
    measured = label_effect(predictor, split, timestep=300, batch_size=9, seed=1)
    noises = [torch.randn(9, 1, 4, 4, generator=draws) for draws in noise_streams()]
    one, other = (score_based_gradients(predictor, split.pixels(), timestep=300, noise=noise) for noise in noises)
    cosines = [cosine(one[b, c], other[b, c]) for b in range(9) for c in (b % 3, (b + 1) % 3)]
    assert measured["draw_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)


def test_the_standard_error_over_classes_of_uneven_sizes():
    """The cluster-robust variance of a mean, written out; classes without an image do not count."""
    differences, labels = [0.5, 0.25, 1.0, -0.5, 2.0, 0.125], [0, 0, 0, 2, 2, 4]
    mean = sum(differences) / 6
    total = 0.0
    for label in (0, 2, 4):
        total += sum(d - mean for d, own in zip(differences, labels, strict=True) if own == label) ** 2
    expected = math.sqrt(3 / 2 * total) / 6
    found = error_over_classes(torch.tensor(differences, dtype=torch.float64), torch.tensor(labels))
    assert found == pytest.approx(expected, rel=1e-12)


def test_an_exact_model_passes_and_one_that_ignores_its_label_is_refused(mixture):
    predictor, means, _ = mixture
    split = mixture_split(means, 60)
    require_label_effect(label_effect(predictor, split, timestep=300, batch_size=16, seed=1), "here")

    class Ignoring(nn.Module):
        def forward(self, x_t, timesteps, y):
            return x_t * 0.5

    predictor.network = Ignoring()
    measured = label_effect(predictor, split, timestep=300, batch_size=16, seed=1)
    with pytest.raises(LabelIgnored, match=r"data/diffusion does not use its label.*diffusion.steps"):
        require_label_effect(measured, "data/diffusion")


class PatternPerLabel(nn.Module):
    """Shrinks x_t, and adds a pattern of its label: `share` of the label's own mean, and one that is there by `chance`.

    Without a share no label is better than another but by chance, which is then the same for all images of a class.
    """

    def __init__(self, means, share, chance, draws):
        super().__init__()
        by_chance = chance * torch.randn(len(means) + 1, *means.shape[1:], generator=draws)
        self.patterns = by_chance - share * torch.cat([means, means.mean(0, keepdim=True)])

    def forward(self, x_t, timesteps, y):
        return 0.8 * x_t + self.patterns[y]


def share_that_passes(mixture, share, chance, *, models, classes, per_class):
    """Of models with labels as `PatternPerLabel` has them: how many `require_label_effect` lets pass."""
    predictor, _, draws = mixture
    passed = 0
    for number in range(models):
        means = 0.5 * torch.randn(classes, 1, 4, 4, generator=draws)
        labels = torch.arange(per_class * classes) % classes
        pixels = (means[labels] + 0.3 * torch.randn(len(labels), 1, 4, 4, generator=draws) + 1) / 2
        split = Split((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels)
        predictor.card["class_names"] = [str(label) for label in range(classes)]
        predictor.network = PatternPerLabel(means, share, chance, draws)
        measured = label_effect(predictor, split, timestep=300, batch_size=len(split), seed=number)
        try:
            require_label_effect(measured, "it")
            passed += 1
        except LabelIgnored:
            pass
    return passed / models


@pytest.fixture
def few_compared(monkeypatch):
    """Fewer images whose draws are compared: the check does not look at them, and they take most of the time."""
    monkeypatch.setattr("pag_core.gradients.label_effect.DRAW_SAMPLE", 1)


@pytest.mark.parametrize(
    ("classes", "per_class", "models"), [(2, 40, 300), (3, 40, 300), (10, 40, 300), (10, 400, 150)]
)
def test_labels_that_help_by_chance_pass_no_more_often_than_stated(mixture, few_compared, classes, per_class, models):
    """At most as often as Student's t exceeds three, also of many images: over images alone 7 % of the last pass."""
    stated = stats.t.sf(3, classes - 1)
    allowed = stated + 3 * math.sqrt(stated * (1 - stated) / models)
    found = share_that_passes(mixture, 0.0, 0.05, models=models, classes=classes, per_class=per_class)
    assert found <= allowed


@pytest.mark.parametrize("classes", [5, 10])
def test_a_label_that_helps_passes(mixture, few_compared, classes):
    assert share_that_passes(mixture, 0.3, 0.01, models=40, classes=classes, per_class=40) == 1


def test_several_noise_levels_in_one():
    low = {"draw_cosine": 0.5, "draw_images": 12, "images": 40, "timestep": 100, "precision_cosine_min": 0.999}
    high = {"draw_cosine": 0.75, "draw_images": 12, "images": 40, "timestep": 300, "precision_cosine_min": 0.9}
    assert over_levels([low]) == low
    both = {"draw_cosine": 0.625, "draw_images": 12, "images": 40, "timestep": [100, 300], "precision_cosine_min": 0.9}
    found = over_levels([low, high])
    assert found == both and isinstance(found["images"], int)


ERRORS = {
    "held_out_error_conditional": 0.2, "held_out_error_unconditional": 0.3, "held_out_error_wrong_class": 0.4,
    "standard_error_over_images": 0.066, "standard_error_over_classes": 0.066,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"held_out_error_unconditional": 0.2001}, True),
        ({"held_out_error_unconditional": 0.3999}, True),
        ({"held_out_error_unconditional": 0.2}, False),
        ({"held_out_error_unconditional": 0.4}, False),
        ({"held_out_error_unconditional": 0.1}, False),
        ({"held_out_error_unconditional": 0.5}, False),
        ({"standard_error_over_images": 0.067}, False),
        ({"standard_error_over_classes": 0.067}, False),
        ({"held_out_error_conditional": 0.4, "held_out_error_wrong_class": 0.2}, False),
        ({"standard_error_over_classes": math.nan}, False),
        *(({f"held_out_error_{name}": math.nan}, False) for name in ("conditional", "unconditional", "wrong_class")),
    ],
)
def test_the_three_errors_must_ascend_and_their_ends_be_apart(changes, good):
    if good:
        require_label_effect(ERRORS | changes, "x")
    else:
        with pytest.raises(LabelIgnored):
            require_label_effect(ERRORS | changes, "x")


def test_a_refusal_says_how_much_was_missing():
    with pytest.raises(
        LabelIgnored,
        match=r"x does not use its label.*0\.20000 with the right label, 0\.30000 without one, 0\.40000 with a wrong one.*"
        r"0\.20000, more than 3 standard errors, which are 0\.06600 over images and 0\.07000 over classes.*diffusion\.steps.*"
        r"prepare\.validation_fraction",
    ):
        require_label_effect(ERRORS | {"standard_error_over_classes": 0.07}, "x")

"""Pictures that the networks of runs draw, with networks, images and results of our own in place of stored ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import typer

from experiments.figures import pictures
from experiments.figures.models import Finished
from pag_core.compute.randomness import generator
from pag_core.diffusion.network import NoisePredictor
from pag_core.evaluation.pgd import targeted_images
from pag_core.gradients.score_based import score_based_gradients
from pag_core.pipeline.code_identity import CHECKOUT
from tests.fixtures.samples import gaussian, write_dense
from tests.unit.experiments.test_plots import described, made_up
from tests.unit.figures.test_figures import pictures as images_of
from tests.unit.figures.test_figures import texts

ROWS = {
    "vanilla": {"of": "t300", "baseline": True},
    "t = 300": {"of": "t300"},
    "t = 50": {"of": "t50"},
    "AT": {"of": "at"},
}
CLASSIFIERS = {
    "t300": {"source": "sbg"},
    "t50": {"source": "sbg", "sbg": {"timestep": 50}},
    "at": {"source": "none", "method": "at", "at": {"norm": "L2"}},
}
# several rows of one noise level, several diffusion models, of which two are from elsewhere, and a row of two levels
LEVELS = {
    "low": {"source": "sbg", "sbg": {"timestep": 100}},
    "low_at": {"source": "sbg", "sbg": {"timestep": 100}, "method": "at", "at": {"norm": "L2"}},
    "high": {"source": "sbg", "sbg": {"timestep": 200, "draws": 2}},
    "both": {"source": "sbg", "sbg": {"timestep": [200, 100]}, "diffusion_checkpoint": "/elsewhere/teacher"},
    "online": {"source": "sbg_online", "sbg": {"timestep": 150}, "diffusion_checkpoint": "data/pretrained"},
}
WINDOWS = {"low": [30, 230], "low_at": [30, 230], "high": [150, 450], "both": [0, 300], "online": [100, 600]}
HELD_OUT = 10


class Places:
    """Networks by the place that a run's output would have."""

    def __init__(self, make_classifier):
        self.make, self.networks = make_classifier, {}

    def __call__(self, place, dataset, device):
        seed = sum(str(place).encode())
        self.networks.setdefault(place, self.make(seed=seed).eval().requires_grad_(False))
        return self.networks[place], None


class Teachers:
    """Diffusion models by the place that a run's output would have, or that the parameters name; no two are alike."""

    def __init__(self, windows, make_predictor, dataset):
        self.models = {}
        for number, (place, window) in enumerate(windows.items()):
            model = make_predictor(dataset, spread=0.05 + 0.01 * number)
            self.models[place] = NoisePredictor({**model.card, "timestep_window": window}, model.network, model.device)

    def __call__(self, place, dataset, device):
        return self.models[str(place)], None


@pytest.fixture
def of_our_own(monkeypatch, dataset, make_classifier):
    """The images and the classifiers that pictures read."""
    monkeypatch.setattr(pictures, "read_dataset", lambda place: dataset)
    monkeypatch.setattr(pictures, "load_classifier", Places(make_classifier))


@pytest.fixture
def several(tmp_path, of_our_own):
    """One experiment of three seeds that has finished but for t300 with the first; two steps of PGD."""
    figures = {"targeted_steps": 2, "targeted_radius": {"L2": 1.0}}
    experiment = described(tmp_path, classifiers=CLASSIFIERS, rows=ROWS, params={"figures": figures})
    made = made_up(experiment, without=("t300-seed1",))
    return [Finished(experiment, made.measured, lambda run, path: f"{run}/{path}")]


@pytest.fixture
def levels(tmp_path, monkeypatch, of_our_own, dataset, make_predictor):
    """An experiment of three seeds whose rows have diffusion models of their own, in `pictures.load_noise_predictor`."""
    places = {label: f"{label}-seed1/data/diffusion" for label in LEVELS}
    places |= {"both": "/elsewhere/teacher", "online": str(CHECKOUT / "data/pretrained")}
    windows = {places[label]: window for label, window in WINDOWS.items()}
    monkeypatch.setattr(pictures, "load_noise_predictor", Teachers(windows, make_predictor, dataset))
    experiment = described(tmp_path, "levels", classifiers=LEVELS)
    return [Finished(experiment, made_up(experiment).measured, lambda run, path: f"{run}/{path}")], places


@pytest.fixture
def stored(tmp_path, of_our_own, dataset):
    """`stored(t50=2)`: an experiment with adversarial training, whose other rows have stores of gradients by that seed."""

    def make(**seeds):
        classifiers = {**{label: {"source": "sbg"} for label in seeds}, "at": CLASSIFIERS["at"]}
        params = {"gradient_store": {"held_out_images": HELD_OUT}}
        experiment = described(tmp_path, "stored", classifiers=classifiers, params=params)
        for label, seed in seeds.items():
            gradients = {"train": gaussian(36), "test": gaussian(HELD_OUT, seed=seed)}
            place = tmp_path / f"{label}-seed1/data/gradients/sbg.zarr"
            write_dense(place, tmp_path / "work", dataset, gradients, "float32")
        return [Finished(experiment, made_up(experiment).measured, lambda run, path: tmp_path / run / path)]

    return make


def signed_pictures(figure):
    return [image.get_array() for image in images_of(figure) if image.get_clim() == (-1, 1)]


def scaled(gradient):
    return (gradient / gradient.abs().max())[0]


def robustness(finished, classifier, who, setting):
    runs = [run for run in finished.experiment.runs[classifier] if run in finished.measured]
    return f"{100 * np.mean([finished.measured[run]['autoattack'][who][setting] for run in runs]):.1f} %"


def test_pushed_images_are_those_of_the_rows_networks(several, dataset, cpu):
    drawn = pictures.draw_lambda(several, [2])
    # of the first seed, in which one row is a gap, and the baseline beside it
    names = [text for text in texts(drawn.figure) if "\n" in text]
    assert [name.split("\n")[0] for name in names] == ["t = 50", "AT"]
    assert names[0].split("\n")[1:] == [
        f"L₂ 0.75: {robustness(several[0], 't50', 'model', 'L2 0.75')}",
        f"L∞ 0.15: {robustness(several[0], 't50', 'model', 'Linf 0.15')}",
    ]
    network, _ = pictures.load_classifier("t50-seed1/data/classifier", dataset, cpu)
    inputs = dataset.splits["test"].pixels(torch.tensor([2]))
    expected = targeted_images(network, inputs, 3, norm="L2", radius=1.0, steps=2, batch_size=3)
    np.testing.assert_allclose(images_of(drawn.figure)[1 + 2].get_array(), expected[0, 2, 0], atol=1e-6)
    caption = " ".join(drawn.caption)
    assert "seed 1; test images number 2." in caption and "200 test images, mean over seeds 1, 2, 3." in caption
    fewer = {run: found for run, found in several[0].measured.items() if run != "at-seed2"}
    caption = " ".join(pictures.draw_lambda([replace(several[0], measured=fewer)], [2]).caption)
    assert "mean over seeds t = 50: 1, 2, 3; AT: 1, 3." in caption


def test_blocks_have_an_image_of_each_class(several, dataset):
    drawn = pictures.draw_targeted(several, [])
    labels = dataset.splits["test"].labels.tolist()
    assert f"test images number {', '.join(str(labels.index(label)) for label in range(3))}." in drawn.caption[1]
    assert len(images_of(drawn.figure)) == 2 * 3 * (1 + 3)


def test_gradients_of_each_noise_level_by_the_teacher_of_each_row(levels, dataset, cpu):
    several, places = levels
    drawn = pictures.draw_timesteps(several, [4], [400, 100])
    # 400 is of no row, and the first diffusion model that was trained for it is that of `high`
    wanted = [
        (100, "low"),
        (100, "low_at"),
        (100, "both"),
        (150, "online"),
        (200, "high"),
        (200, "both"),
        (400, "high"),
    ]
    rows = [text.split("\n") for text in texts(drawn.figure) if text.startswith("t = ")]
    assert rows[:-1] == [
        [
            f"t = {level}",
            label,
            f"L₂ 0.75: {robustness(several[0], label, 'model', 'L2 0.75')}",
            f"L∞ 0.15: {robustness(several[0], label, 'model', 'Linf 0.15')}",
        ]
        for level, label in wanted[:-1]
    ]
    assert rows[-1] == ["t = 400"]
    inputs = dataset.splits["test"].pixels(torch.tensor([4]))
    stream = generator(cpu, 1, "figure of noise levels")
    first, second = torch.randn(inputs.shape, generator=stream), torch.randn(inputs.shape, generator=stream)
    signed = signed_pictures(drawn.figure)
    assert len(signed) == 3 * len(wanted)
    for number, (level, label) in enumerate(wanted):
        teacher, _ = pictures.load_noise_predictor(places[label], dataset, cpu)
        noises = (first, second) if label == "high" else (first,)
        gradients = sum(score_based_gradients(teacher, inputs, timestep=level, noise=noise)[0] for noise in noises)
        for target in range(3):
            np.testing.assert_allclose(signed[3 * number + target], scaled(gradients[target]), atol=1e-5)
    caption = " ".join(drawn.caption)
    assert "draws of noise: 1 or 2. t = 400 is by the diffusion model of the row high. digits, seed 1" in caption


def test_a_level_that_no_teacher_was_trained_for(levels):
    listed = "30 to 230 or 150 to 450 or 0 to 300 or 100 to 600"
    with pytest.raises(typer.BadParameter, match=f"601 is not among the noise levels {listed} of the diffusion model"):
        pictures.draw_timesteps(levels[0], [4], [600, 601])


def test_a_row_that_is_called_by_its_level_is_named_once(several, monkeypatch, dataset, make_predictor):
    teachers = Teachers({"t50-seed1/data/diffusion": None}, make_predictor, dataset)
    monkeypatch.setattr(pictures, "load_noise_predictor", teachers)
    (row,) = [text for text in texts(pictures.draw_timesteps(several, [4], []).figure) if text.startswith("t = ")]
    assert row.split("\n")[:2] == ["t = 50", f"L₂ 0.75: {robustness(several[0], 't50', 'model', 'L2 0.75')}"]


def test_gradients_of_sources_and_of_a_classifier(stored, tmp_path, dataset, cpu):
    drawn = pictures.draw_sources(stored(t50=2), [3])
    signed = signed_pictures(drawn.figure)
    titles = ["one image (OI)", "class mean (CM)", "nearest neighbor (NN)", "score-based (SBG)"]
    assert (
        drawn.caption[0] == f"From top to bottom: {', '.join(titles)}, input-gradient of at." and len(signed) == 5 * 3
    )
    train, image = dataset.splits["train"], dataset.splits["test"].pixels()[3]
    means = [train.pixels()[train.labels == label].mean(0) - image for label in range(3)]
    np.testing.assert_allclose(signed[3 + 1], scaled(means[1]), atol=1e-5)
    for label in range(3):
        np.testing.assert_allclose(signed[9 + label], scaled(gaussian(HELD_OUT, seed=2)[3, label]), atol=1e-5)
    network, _ = pictures.load_classifier(tmp_path / "at-seed1/data/classifier", dataset, cpu)
    inputs = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs).log_softmax(1)[0, 2], inputs)
    np.testing.assert_allclose(signed[12 + 2], scaled(gradient[0]), atol=1e-4)


def test_stores_that_differ_are_told_apart_and_equal_ones_drawn_once(stored):
    drawn = pictures.draw_sources(stored(t50=2, t50_again=2, t300=3), [HELD_OUT - 1])
    named = [text for text in texts(drawn.figure) if text.startswith("score-based")]
    assert named == ["score-based (SBG)\nt50", "score-based (SBG)\nt300"]
    assert "score-based (SBG) of t50, score-based (SBG) of t300, input-gradient of at." in drawn.caption[0]
    signed = signed_pictures(drawn.figure)
    assert len(signed) == 6 * 3
    for number, seed in ((3, 2), (4, 3)):
        expected = scaled(gaussian(HELD_OUT, seed=seed)[HELD_OUT - 1, 1])
        np.testing.assert_allclose(signed[3 * number + 1], expected, atol=1e-5)


def test_an_image_of_which_a_store_has_no_gradients(stored):
    message = "10 is not one of the first 10 test images, whose gradients the store of t50 holds; .*held_out_images"
    with pytest.raises(typer.BadParameter, match=message):
        pictures.draw_sources(stored(t50=2), [3, HELD_OUT])


def test_what_cannot_be_drawn(several, tmp_path):
    with pytest.raises(typer.BadParameter, match="one description"):
        pictures.draw_targeted([*several, *several], [])
    with pytest.raises(typer.BadParameter, match="15 is not one of 15 test images"):
        pictures.draw_targeted(several, [15])
    nothing = made_up(several[0].experiment, without=several[0].experiment.params)
    with pytest.raises(typer.BadParameter, match="none of the runs of made_up-full has finished"):
        pictures.draw_lambda([nothing], [])
    no_source = described(tmp_path, classifiers={"cm": {"source": "cm"}})
    with pytest.raises(typer.BadParameter, match="has the source sbg"):
        pictures.draw_timesteps([made_up(no_source)], [], [])

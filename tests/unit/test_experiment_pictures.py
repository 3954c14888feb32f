"""Pictures that the networks of runs draw, with networks, images and results of our own in place of stored ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import typer

from experiments import pictures
from experiments.finished import Finished
from pag_core.compute.randomness import generator
from pag_core.evaluation.pgd import targeted_images
from pag_core.gradients.score_based import score_based_gradients
from tests.unit.test_experiment_figures import described, made_up
from tests.unit.test_figures import pictures as images_of
from tests.unit.test_figures import texts

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


class Places:
    """Networks by the place that a run's output would have."""

    def __init__(self, make_classifier):
        self.make, self.networks = make_classifier, {}

    def __call__(self, place, dataset, device):
        seed = sum(str(place).encode())
        self.networks.setdefault(place, self.make(seed=seed).eval().requires_grad_(False))
        return self.networks[place], None


@pytest.fixture
def several(tmp_path, monkeypatch, dataset, make_classifier, make_predictor):
    """One experiment of three seeds that has finished but for t300 with the first; two steps of PGD."""
    figures = {"targeted_steps": 2, "targeted_radius": {"L2": 1.0}}
    experiment = described(tmp_path, classifiers=CLASSIFIERS, rows=ROWS, params={"figures": figures})
    predictor = make_predictor(dataset)
    monkeypatch.setattr(pictures, "read_dataset", lambda place: dataset)
    monkeypatch.setattr(pictures, "load_classifier", Places(make_classifier))
    monkeypatch.setattr(pictures, "load_noise_predictor", lambda *_: (predictor, None))
    made = made_up(experiment, without=("t300-seed1",))
    return [Finished(experiment, made.measured, lambda run, path: f"{run}/{path}")]


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
    expected = targeted_images(network, inputs, 3, norm="L2", radius=1.0, steps=2)
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


def test_gradients_of_each_noise_level(several, dataset, cpu):
    drawn = pictures.draw_timesteps(several, [4], [700])
    rows = [text for text in texts(drawn.figure) if text.startswith("t = ")]
    assert (
        [row.split("\n")[0] for row in rows] == ["t = 50", "t = 700"] and "L₂ 0.75" in rows[0] and "\n" not in rows[1]
    )
    predictor, _ = pictures.load_noise_predictor()
    inputs = dataset.splits["test"].pixels(torch.tensor([4]))
    noise = torch.randn(inputs.shape, generator=generator(cpu, 1, "figure of noise levels"))
    signed = [image.get_array() for image in images_of(drawn.figure) if image.get_clim() == (-1, 1)]
    for number, level in enumerate((50, 700)):
        gradients = score_based_gradients(predictor, inputs, timestep=level, noise=noise)[0]
        for label in range(3):
            expected = (gradients[label] / gradients[label].abs().max())[0]
            np.testing.assert_allclose(signed[3 * number + label], expected, atol=1e-5)
    with pytest.raises(typer.BadParameter, match="1000 is not among the noise levels 0 to 999"):
        pictures.draw_timesteps(several, [4], [1000])


def test_gradients_of_sources_and_of_a_classifier(several, dataset, monkeypatch, cpu):
    ones = torch.ones(1, 3, 1, 8, 8)
    monkeypatch.setattr(pictures, "open_gradients", lambda *_: lambda indices, classes: ones)
    drawn = pictures.draw_sources(several, [3])
    signed = [image.get_array() for image in images_of(drawn.figure) if image.get_clim() == (-1, 1)]
    assert drawn.caption[0].count(",") == 4 and len(signed) == 5 * 3
    train, image = dataset.splits["train"], dataset.splits["test"].pixels()[3]
    means = [train.pixels()[train.labels == label].mean(0) - image for label in range(3)]
    np.testing.assert_allclose(signed[3 + 1], (means[1] / means[1].abs().max())[0], atol=1e-5)
    np.testing.assert_allclose(signed[9], 1)
    network, _ = pictures.load_classifier("at-seed1/data/classifier", dataset, cpu)
    inputs = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs).log_softmax(1)[0, 2], inputs)
    np.testing.assert_allclose(signed[12 + 2], (gradient / gradient.abs().max())[0, 0], atol=1e-4)


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

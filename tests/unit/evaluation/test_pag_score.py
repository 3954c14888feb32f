"""The PAG score of linear models against closed forms and loops."""

import numpy as np
import pytest
import torch

from pag_core.evaluation import pag_score as pag_score_module
from pag_core.evaluation.pag_score import pag_score
from pag_core.gradient_store.store import RepresentativeGradients
from tests.fixtures.linear_models import linear
from tests.fixtures.samples import labelled_images


def softmax_gradients(model, images):
    """The input-gradient of log p_c of a linear model: w_c - sum_k p_k w_k."""
    p = model(images).softmax(1)
    return (model.weight[None] - (p @ model.weight)[:, None]).reshape(len(images), -1, 1, 4, 4)


class Stored:
    def __init__(self, gradients):
        self.gradients = gradients

    def __call__(self, image_indices, class_indices):
        return self.gradients[image_indices[:, None], class_indices]


@pytest.mark.parametrize("at_once", [400, 14, 3, 1])
def test_the_score_of_a_model_against_its_own_gradients_is_one(at_once):
    model = linear(classes=4)
    images, _ = labelled_images(model, 7)
    own = softmax_gradients(model, images)
    assert pag_score(model, images, Stored(5 * own), classes=4, batch_size=at_once) == pytest.approx(1, abs=1e-5)
    assert pag_score(model, images, Stored(-own), classes=4, batch_size=at_once) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("at_once", [300, 12, 2])
def test_the_score_matches_loops(dataset, at_once):
    model = linear(classes=3, side=8, seed=2)
    representatives, test = torch.rand(3, 1, 8, 8), dataset.splits["test"]
    images = test.pixels(slice(0, 6))
    found = pag_score(model, images, RepresentativeGradients(representatives, test), classes=3, batch_size=at_once)
    cosines = []
    for image in images.double():
        weight = model.weight.double()
        p = (weight @ image.flatten() + model.bias.double()).softmax(0)
        for label in range(3):
            v, u = (weight[label] - p @ weight).numpy(), (representatives[label].double() - image).flatten().numpy()
            cosines.append(np.dot(v, u) / np.linalg.norm(v) / np.linalg.norm(u))
    assert found == pytest.approx(np.mean(cosines), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 6, 8])
def test_no_more_gradients_at_once_than_were_asked_for(monkeypatch, batch_size):
    """Also where an image has more classes than that."""
    model, taken = linear(classes=4), []
    images, _ = labelled_images(model, 5)
    gradients = pag_score_module.input_gradients

    def counted(classifier, some, class_indices, **options):
        taken.append(class_indices.numel())
        return gradients(classifier, some, class_indices, **options)

    monkeypatch.setattr(pag_score_module, "input_gradients", counted)
    own = softmax_gradients(model, images)
    assert pag_score(model, images, Stored(own), classes=4, batch_size=batch_size) == pytest.approx(1, abs=1e-5)
    assert sum(taken) == 20 and max(taken) <= batch_size

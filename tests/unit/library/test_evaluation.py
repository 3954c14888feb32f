"""Evaluation of any network: to the byte what the stages find, kept and resumed, and the random streams left alone."""

import json

import pytest
import torch
from pyautoattack.autoattack import AutoAttack
from torch import nn

import pag_core
from pag_core.errors import EvaluationRefused, ParamsError, ShapeMismatch
from pag_core.evaluation import masking, pgd
from pag_core.evaluation import pag_score as scoring
from pag_core.evaluation.autoattack import run_autoattack
from pag_core.evaluation.foolbox_suite import run_foolbox
from pag_core.gradient_store.targets import RepresentativeGradients
from pag_core.library import evaluation
from pag_core.params.measurements import AutoAttackParams, FoolboxParams, MaskingParams
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.samples import Changed, labelled_images


def small_network(seed=0, classes=10):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, classes)
    ).eval().requires_grad_(False)  # fmt: skip


BASELINE = small_network(1)


@pytest.fixture
def subject():
    network = small_network()
    return network, *labelled_images(network, 10, side=8)


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    """AutoAttack with few iterations; for speed only."""
    make = AutoAttack.__init__

    def init(self, *arguments, **options):
        make(self, *arguments, **options)
        self.square.n_queries, self.fab.n_iter = 40, 5
        self.apgd.n_iter = self.apgd_targeted.n_iter = 6

    monkeypatch.setattr(AutoAttack, "__init__", init)


RADII = {"Linf": ["0.14"], "L2": ["0.6"]}
FOOLBOX = {"grid": {"L2": [0.5], "L0": [5], "L1": [2]}, "ead_steps": 3, "search_steps": 5, "salt_and_pepper_repeats": 1}
MASKING = {"radii": {"Linf": ["0.1", "0.5"]}, "transfer_radii": {"Linf": ["0.1"]}, "steps": 4, "square_queries": 20}


def stage_autoattack(subject, folder):
    params = AutoAttackParams(version="standard", images=10, radii=RADII, images_per_shard=4, batch_size=3)
    return run_autoattack(*subject, classes=10, params=params, seed=5, folder=folder, who="classifier")


def stage_foolbox(subject, folder):
    params = FoolboxParams(images=10, batch_size=6, **FOOLBOX)
    return run_foolbox(*subject, params=params, seed=5, folder=folder, who="classifier")


def stage_masking(subject, folder):
    network, images, labels = subject
    params = MaskingParams(images=10, batch_size=6, **MASKING)
    return masking.masking_checks(network, BASELINE, images, labels, classes=10, params=params, seed=5, folder=folder)


def library_autoattack(subject, **more):
    radii = {"Linf": [0.14], "L2": ["0.6"]}
    return pag_core.autoattack(*subject, **{"radii": radii, "images_per_shard": 4, "batch_size": 3, "seed": 5, **more})


def short_autoattack(subject, **more):
    return library_autoattack(subject, **{"radii": {"Linf": [0.1]}, "images_per_shard": 2, **more})


def library_foolbox(subject, **more):
    return pag_core.foolbox_suite(*subject, batch_size=6, seed=5, **FOOLBOX, **more)


def library_masking(subject, **more):
    network, images, labels = subject
    return pag_core.masking_checks(network, BASELINE, images, labels, batch_size=6, seed=5, **MASKING, **more)


BOTH = [
    pytest.param(library_autoattack, stage_autoattack, id="autoattack"),
    pytest.param(library_foolbox, stage_foolbox, id="foolbox"),
    pytest.param(library_masking, stage_masking, id="masking"),
]


@pytest.mark.parametrize(("library", "of_stage"), BOTH)
def test_results_are_the_stages(tmp_path, subject, library, of_stage):
    expected = of_stage(subject, RunFolder(tmp_path))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    found = library(subject)
    assert json.dumps(found) == json.dumps(expected)
    assert torch.equal(torch.get_rng_state(), before)


class Killed(Exception):
    pass


class Counting(nn.Module):
    """Counts forward passes, and dies at one."""

    def __init__(self, network, dies_at=None):
        super().__init__()
        self.network, self.dies_at, self.calls = network, dies_at, 0

    def forward(self, images):
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        return self.network(images)


def test_a_folder_keeps_what_is_finished(tmp_path, subject):
    network, images, labels = subject
    unbroken = Counting(network)
    expected = short_autoattack((unbroken.eval(), images, labels), folder=tmp_path / "unbroken")
    dying = Counting(network, dies_at=unbroken.calls * 9 // 10).eval()
    with pytest.raises(Killed):
        short_autoattack((dying, images, labels), folder=tmp_path / "kept")
    again = Counting(network).eval()
    assert short_autoattack((again, images, labels), folder=tmp_path / "kept") == expected
    assert again.calls < unbroken.calls * 0.7
    once_more = Counting(network).eval()
    assert short_autoattack((once_more, images, labels), folder=tmp_path / "kept") == expected
    assert once_more.calls < again.calls
    # another network, other images and another seed are other work
    for changed in ((small_network(3), images, labels), (network, images.flip(0), labels)):
        short_autoattack(changed, folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("autoattack-*"))) == 3


def test_the_pag_score_is_the_stages_for_a_store_and_for_a_tensor(make_classifier, dataset):
    classifier, test = make_classifier().eval(), dataset.splits["test"]
    means = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = RepresentativeGradients(means, test)
    expected = scoring.pag_score(classifier, test.pixels(), gradients, classes=3, batch_size=7)
    whole = means - test.pixels()[:, None]
    assert pag_core.pag_score(classifier, test.pixels(), whole, batch_size=7) == expected
    with pytest.raises(ShapeMismatch, match="one of each class"):
        pag_core.pag_score(classifier, test.pixels(), whole[:, :2])
    train = dataset.splits["train"]
    targets = pag_core.class_mean_targets(train.pixels(), train.labels, of=test.pixels())
    by_stage = scoring.pag_score(classifier, test.pixels(), targets.gradients, classes=3, batch_size=1000)
    assert pag_core.pag_score(classifier, test.pixels(), targets) == by_stage != expected


def test_targeted_images_are_the_stages_and_are_drawn(subject):
    network, images, labels = subject
    expected = pgd.targeted_images(network, images[:2], 10, norm="L2", radius=1.5, steps=3, batch_size=4)
    found = pag_core.targeted_images(network, images[:2], radius="3/2", steps=3, batch_size=4)
    assert torch.equal(found, expected) and found.shape == (2, 10, 1, 8, 8)
    figure = pag_core.targeted_figure({"mine": network, "yours": network}, images[:2], labels[:2], radius=1.5, steps=3)
    assert len(figure.axes) >= 2 * 2 * 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda network: network.train(), EvaluationRefused, "train mode"),
        (
            lambda network: Changed(network, lambda logits, _: (logits, None)).eval(),
            EvaluationRefused,
            "returns a tuple.*wrap",
        ),
        (
            lambda network: Changed(network, lambda logits, _: logits[:, :, None]).eval(),
            EvaluationRefused,
            "\\[1, 10, 1\\]",
        ),
        (
            lambda network: Changed(network, lambda logits, _: logits.softmax(1)).eval(),
            EvaluationRefused,
            "probabilities",
        ),
    ],
)
def test_a_network_that_must_not_be_evaluated_is_refused(subject, change, error, message):
    network, images, labels = subject
    with pytest.raises(error, match=message):
        pag_core.autoattack(change(network), images, labels)


def test_a_bad_option_is_named(subject):
    with pytest.raises(ParamsError, match=r"radii.*'L7'|radii\.L7"):
        pag_core.autoattack(*subject, radii={"L7": [1]})
    with pytest.raises(ParamsError, match="a radius is positive, not 0"):
        pag_core.autoattack(*subject, radii={"Linf": [0]})
    with pytest.raises(ParamsError, match="batch_size: 0 is refused"):
        pag_core.foolbox_suite(*subject, batch_size=0)


def test_a_rank_of_a_users_torchrun_evaluates_by_itself(monkeypatch, subject):
    expected = short_autoattack(subject)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert short_autoattack(subject) == expected


def test_weights_are_told_apart_by_every_bit():
    network = small_network()
    before = evaluation._digest(network.state_dict())
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = torch.nextafter(network[0].weight[0, 0, 0, 0], torch.tensor(9.0))
    assert evaluation._digest(network.state_dict()) != before

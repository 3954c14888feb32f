"""A step of a single image, of which batch-norm has no statistics, is refused before the training and not after an epoch."""

import re

import pytest
import torch

from pag_core.classifiers.architectures import build_classifier
from pag_core.compute.processes import Process
from pag_core.compute.replicas import Replicas
from pag_core.errors import ParamsError
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from pag_core.training.smallest_batch import require_smallest_batch, smallest_share


def network(side, arch="wrn_34_10"):
    torch.manual_seed(0)
    options = {"wrn_34_10": {"width": 1, "depth": 10}, "small_resnet": {"width": 4}}[arch]
    return build_classifier(arch, activation=None, image_shape=(1, side, side), classes=3, **{"width": None, **options})


@pytest.fixture
def train(make_dataset, make_params, cpu, tmp_path):
    """`train(network, side, batch_size)`: one epoch on 36 images."""

    def make(classifier, side, batch_size, processes=1):
        params = make_params({"train.epochs": 1, "train.batch_size": batch_size, "train.ema_decay": None})
        dataset = make_dataset(shape=(1, side, side))
        trainer = Trainer(
            classifier=classifier, train=dataset.splits["train"], classes=3, params=params.train, term=None, seed=5,
            device=cpu, folder=RunFolder(tmp_path / "run"), processes=processes,
        )  # fmt: skip
        return trainer.run(tmp_path / "curves")

    return make


def test_a_last_batch_of_one_image_is_refused_before_the_first_step(train):
    """Features of 4 pixels a side are one pixel in the last group of a WideResNet."""
    classifier = network(4)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    words = (
        r"batch_size is 7, so that of 36 training images a step .* has 1; .*1 value per channel.*: set it to 6 or 8$"
    )
    with pytest.raises(ParamsError, match=words):
        train(classifier, 4, 7)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


@pytest.mark.parametrize(("arch", "side"), [("small_resnet", 4), ("wrn_34_10", 16)])
def test_a_network_that_takes_one_image_trains_on_it(train, arch, side):
    """One without batch-norm, and one whose features have several pixels to the end."""
    assert len(train(network(side, arch), side, 7)) == 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_refused_is_what_fails(processes):
    """Against the network itself on every share of every step."""
    images, classifier = 11, network(4).train()

    def fails(size):
        sizes = {min(size, images - start) for start in range(0, images, size)}
        shares = [
            Replicas(Process(rank, processes), None).share(whole).rows for whole in sizes for rank in range(processes)
        ]
        try:
            for count in {len(range(images)[rows]) for rows in shares}:
                classifier(torch.rand(count, 1, 4, 4))
        except ValueError:
            return True
        return False

    found = {size: fails(size) for size in range(1, 14)}
    assert {*found.values()} == {True, False}
    for size, wrong in found.items():
        options = {"images": images, "batch_size": size, "processes": processes}
        if not wrong:
            require_smallest_batch(classifier, (1, 4, 4), **options)
            continue
        with pytest.raises(ParamsError, match=f"train.batch_size is {size}, ") as caught:
            require_smallest_batch(classifier, (1, 4, 4), **options)
        offered = [
            int(size)
            for text in re.findall(r"set it to ([\d or]*\d)", str(caught.value))
            for size in text.split(" or ")
        ]
        below = [other for other in found if other < size and not found[other]]
        above = [other for other in found if size < other <= images and not found[other]]
        assert offered == below[-1:] + above[:1]
        assert ("processes: 1" in str(caught.value)) == (processes > 1 and smallest_share(images, size, 1) > 1)


def test_a_network_that_takes_no_batch_at_all_is_not_blamed_on_the_batch():
    """Its own error comes up in the training, as it is."""
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    require_smallest_batch(broken, (1, 4, 4), images=11, batch_size=10, processes=1)


def test_the_trial_leaves_everything_as_it_was():
    classifier = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Dropout(), torch.nn.Flatten()
    )
    classifier.eval()
    classifier[2].train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    require_smallest_batch(classifier, (1, 8, 8), images=11, batch_size=10, processes=1)
    assert torch.equal(torch.rand(4), drawn)
    assert [layer.training for layer in classifier] == [False, False, True, False]
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())

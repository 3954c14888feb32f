"""Fixtures shared by all tests: their parameters, a tiny dataset, classifier and noise predictor."""

import contextlib
import gc
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from pag_core.classifiers.building import build_classifier
from pag_core.datasets.prepared import Dataset, Split, fingerprint
from pag_core.diffusion.network import NoisePredictor, architecture, build_network
from pag_core.params.reading import parse_params
from tests.fixtures import samples
from tests.fixtures.own_folder import own  # noqa: F401
from tests.fixtures.samples import PARAMS, changed, make_labelled

# where the tests run in the background it is ignored, and would be by all that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# the number of threads fixes the order of sums, on which the golden numbers depend
torch.set_num_threads(1)
# of what is imported and collected nothing is garbage, and going through it again and again takes half of that time
gc.disable()


def pytest_collection_finish():
    """From here on the collector looks at what the tests make."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Files with slow tests first: dealt out last, one of them would keep a single worker busy at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def own_params_below_descriptions(monkeypatch):
    """Descriptions of experiments are laid over the tests' parameters, not over those that the user has set."""
    monkeypatch.setattr("experiments.description.experiment.BASE", PARAMS)


@pytest.fixture
def plain_params():
    """The tests' parameters as plain data, free to be changed."""
    return samples.plain_params()


@pytest.fixture
def make_params(plain_params):
    """`make_params({"train.epochs": 2})`: the tests' validated parameters with some changed."""

    def make(changes=None):
        return parse_params(changed(plain_params, changes or {}))

    return make


@pytest.fixture
def recorded_precision(monkeypatch):
    """`recorded_precision(module, network)`: a list that gets the precision asked for whenever a gradient arrives.

    On the CPU products have one precision; so it is what `module` asked for, by `products_in`, that is looked at.
    """

    def record(module, network):
        seen, asked = [], [None]

        @contextlib.contextmanager
        def asking(precision, device):
            asked.append(precision)
            yield
            asked.pop()

        monkeypatch.setattr(module, "products_in", asking)
        for parameter in network.parameters():
            parameter.register_hook(lambda _: seen.append(asked[-1]))
        return seen

    return record


@pytest.fixture(scope="session")
def make_dataset():
    """A factory of prepared datasets in memory, learnable (each class is noise around a pattern of its own)."""

    def make(classes=3, shape=(1, 8, 8), train=12, validation=4, test=5, seed=1):
        sizes = {"train": train, "validation": validation, "test": test}
        raw = {
            name: make_labelled(classes, per_class, shape, seed + number)
            for number, (name, per_class) in enumerate(sizes.items())
        }
        names = tuple(f"class {label}" for label in range(classes))
        splits = {
            name: Split(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for name, part in raw.items()
        }
        return Dataset(names, fingerprint(names, raw), splits)

    return make


@pytest.fixture
def make_folder(tmp_path):
    """Writes train/CLASS/N.png and test/CLASS/N.png of random pixels: {split: {class: [(width, height), ...]}}."""

    def make(content):
        draws = np.random.default_rng(0)
        root = tmp_path / "folder"
        for part, classes in content.items():
            for name, sizes in classes.items():
                (root / part / name).mkdir(parents=True)
                for number, (width, height) in enumerate(sizes):
                    pixels = draws.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / part / name / f"{number}.png")
        return root

    return make


@pytest.fixture(scope="session")
def dataset(make_dataset):
    """Three classes of 8x8 grey images: 36 training, 12 validation, 15 test."""
    return make_dataset()


@pytest.fixture
def make_classifier():
    """A factory of small norm-free classifiers with a smooth activation."""

    def make(classes=3, shape=(1, 8, 8), width=4, seed=0):
        torch.manual_seed(seed)
        return build_classifier("small_resnet", width=width, activation=None, image_shape=shape, classes=classes)

    return make


@pytest.fixture
def make_predictor(make_params):
    """A factory of noise predictors: guided_diffusion's U-Net with all weights random, also those it starts at zero."""

    def make(dataset, *, learn_sigma=False, timesteps=1000, spread=0.05):
        params = make_params(
            {
                "diffusion.channel_multipliers": [1],
                "diffusion.learn_sigma": learn_sigma,
                "diffusion.timesteps": timesteps,
                "diffusion.timestep_window": None,
            }
        )
        card = architecture(params.diffusion)
        torch.manual_seed(5)
        network = build_network(card, dataset.image_shape, dataset.classes)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += spread * torch.randn_like(parameter)
        return NoisePredictor({**card, "class_names": list(dataset.class_names)}, network, torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def cpu():
    return torch.device("cpu")

"""What only a real GPU can show: `python -m pytest -m gpu`. The same bodies run on the CPU in every test run."""

import contextlib

import pytest
import torch

from pag_core.compute.device import prepare_device
from pag_core.diffusion.network import architecture, build_network
from pag_core.diffusion.training import train_diffusion
from pag_core.evaluation.autoattack import attack_shard
from pag_core.evaluation.preconditions import require_fit_for_attack
from pag_core.gradient_store.targets import DenseGradients
from pag_core.gradients.distillation_precision import in_precision
from pag_core.gradients.score_based import score_based_gradients
from pag_core.objective.input_gradient import input_gradients
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.samples import Killed, KilledFolder, cosines

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return prepare_device(request.param, threads=1)


@contextlib.contextmanager
def no_waiting(device):
    """A GPU raises where Python waits for it."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def trainer(tmp_path, dataset, make_params, make_classifier, device):
    """A training of three epochs on quantised gradients, in the folder `name`."""

    def make(name, kind=RunFolder, **changes):
        params = make_params({
            "train.epochs": 3, "train.batch_size": 8, "objective.classes_per_step": 2,
            "train.augmentation": "crop_flip", **{f"train.{key}": value for key, value in changes.items()},
        })  # fmt: skip
        draws = torch.Generator().manual_seed(1)
        codes = torch.randint(-127, 128, (36, 3, 1, 8, 8), generator=draws, dtype=torch.int8).to(device)
        targets = DenseGradients(codes, torch.rand(36, 3, generator=draws).to(device))
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(
            classifier=make_classifier().to(device), train=dataset.splits["train"], classes=3, params=params.train,
            term=AlignmentTerm(targets, 2.0, params.objective), seed=5, device=device, folder=kind(tmp_path / name),
        )  # fmt: skip

    return make


def weights_of(trainer, tmp_path):
    trainer.run(tmp_path / "curves")
    return {name: value.cpu() for name, value in trainer.classifier.state_dict().items()}


def precisions(device):
    return ["float32", "bfloat16"] + (["tf32"] if device.type == "cuda" else [])


def test_steps_of_the_classifier_do_not_wait(tmp_path, trainer, device, monkeypatch):
    step = Trainer._step

    def watched(self, objective, batch):
        # the first step traces the network and fills caches
        with no_waiting(device) if self.step > 0 else contextlib.nullcontext():
            return step(self, objective, batch)

    monkeypatch.setattr(Trainer, "_step", watched)
    for precision in precisions(device):
        found = weights_of(trainer(f"run-{precision}", precision=precision), tmp_path)
        assert all(torch.isfinite(value).all() for value in found.values())


def test_equal_runs_give_equal_weights_also_after_a_kill(tmp_path, trainer):
    whole = weights_of(trainer("whole"), tmp_path)
    again = weights_of(trainer("again"), tmp_path)
    with pytest.raises(Killed):
        trainer("killed", KilledFolder).run(tmp_path / "curves-killed")
    resumed = weights_of(trainer("killed"), tmp_path)
    for name, value in whole.items():
        assert torch.equal(value, again[name]) and torch.equal(value, resumed[name]), name


def test_diffusion_and_distillation(tmp_path, dataset, make_params, make_predictor, device):
    params = make_params({"diffusion.channel_multipliers": [1], "diffusion.steps": 6}).diffusion
    card = architecture(params)

    def trained(name):
        return train_diffusion(
            lambda: build_network(card, (1, 8, 8), 3), dataset.splits["train"], card=card, params=params, classes=3,
            seed=3, device=device, folder=RunFolder(tmp_path / name),
        )[0]  # fmt: skip

    first, second = trained("first"), trained("second")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    predictor = make_predictor(dataset)
    predictor.network, predictor.device = predictor.network.to(device), device
    images, noise = torch.rand(4, 1, 8, 8).to(device), torch.randn(4, 1, 8, 8).to(device)
    exact = score_based_gradients(predictor, images, timestep=300, noise=noise)
    for precision in precisions(device):
        teacher = in_precision(predictor, precision=precision)
        score_based_gradients(teacher, images, timestep=300, noise=noise)
        with no_waiting(device):
            found = score_based_gradients(teacher, images, timestep=300, noise=noise)
        assert cosines(found.cpu(), exact.cpu()).min() > 0.95


def test_input_gradients_are_those_of_the_cpu(make_classifier, device):
    classifier, images = make_classifier().eval(), torch.rand(6, 1, 8, 8)
    classes = torch.tensor([[0, 1], [1, 2], [2, 0]] * 2)
    options = {"output": "log_softmax", "differentiation": "adjoint", "batch_norm": "frozen", "create_graph": False}
    reference = input_gradients(classifier.double(), images.double(), classes, **options)[1]
    found = input_gradients(classifier.float().to(device), images.to(device), classes.to(device), **options)[1]
    assert cosines(found.cpu(), reference).min() > 0.9999


def test_a_channels_last_classifier_can_be_attacked(make_classifier, device):
    classifier = make_classifier().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    images = torch.rand(6, 1, 8, 8).to(device)
    labels = classifier(images).argmax(1)
    require_fit_for_attack(classifier, images, labels, batch_size=6)
    found = attack_shard(
        classifier, images, labels, norm="Linf", radius=0.02, classes=3, version="standard", batch_size=4, seed=1
    )
    assert found["clean"] == "1" * 6 and len(found["robust"]) == 6

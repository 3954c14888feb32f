"""Methods of the classification part against plain implementations of them: AT, TRADES, gradient norm, Gaussian noise."""

import copy
import shutil
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pag_core.compute.randomness import generator
from pag_core.objective.inner_attack import adversarial_examples, in_mode, projected, start_beside, start_in_ball
from pag_core.objective.methods import (
    STANDARD,
    AdversarialTraining,
    GaussianNoise,
    GradientNorm,
    Method,
    Trades,
    build_method,
)
from pag_core.objective.pag import AlignedBatch, pag_objective, plain_objective
from pag_core.params.sections import (
    AdversarialTrainingParams,
    GaussianNoiseParams,
    GradientNormParams,
    InnerAttackParams,
    NoOptions,
    ObjectiveParams,
    TradesParams,
)
from pag_core.params.values import MethodName
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from tests.fixtures.input_gradient_loops import (
    CLASSES,
    EACH_ARCHITECTURE,
    MEANINGS,
    build,
    loop_gradients,
    parameter_gradient,
    relative,
    samples,
)

FORM = {"output": "logit", "scaling": "drawn", "classes_per_step": "all", "weight_warmup": None}
STEPS, BATCH = 10, 8


def attack(**changes):
    return {"norm": "L2", "radius": "0.5", "steps": 3, "step_size": None, "mode": "eval", **changes}


# --- the inner attack


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_inner_attack_stays_in_its_ball_and_its_range_and_raises_the_loss(make_classifier, norm):
    classifier, draws = make_classifier().eval(), torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 1, 8, 8, generator=draws), torch.tensor([0, 1, 2, 0, 1, 2])
    images[0], images[1] = 0.0, 1.0
    params = InnerAttackParams(**attack(norm=norm, radius="0.3", steps=7))
    start = projected(images + 0.3 * start_in_ball(norm, images.shape, draws), images, norm, 0.3)

    def loss(logits):
        return F.cross_entropy(logits, labels, reduction="sum")

    adversarial = adversarial_examples(classifier, images, start, loss, params)
    difference = (adversarial - images).flatten(1)
    lengths = difference.norm(dim=1) if norm == "L2" else difference.abs().amax(1)
    assert (lengths <= 0.3 + 1e-6).all() and (lengths > 0.1).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1 and not adversarial.requires_grad
    with torch.no_grad():
        assert loss(classifier(adversarial)) > loss(classifier(start)) + 0.1
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_start_is_uniform_in_the_unit_ball(norm):
    start = start_in_ball(norm, (4000, 1, 2, 1), torch.Generator().manual_seed(1)).flatten(1)
    lengths = start.norm(dim=1) if norm == "L2" else start.abs().amax(1)
    assert lengths.max() <= 1
    # in two dimensions a quarter of the ball lies within half its radius
    assert (lengths < 0.5).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert start.mean(0).abs().max() < 0.05


def test_the_modes_of_the_layers_come_back_whatever_happens():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5)).train()
    network[0].eval()
    with pytest.raises(RuntimeError), in_mode(network, "eval"):
        assert not network[0].training and not network[1].training
        raise RuntimeError
    assert network.training and not network[0].training and network[1].training


# --- adversarial training and TRADES against plain loops


def plain_pgd(network, images, begin, objective, norm, radius, steps, step_size):
    """Projected gradient ascent, image by image and step by step."""
    adversarial = begin.clone()
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        gradient = torch.autograd.grad(objective(network(adversarial)), adversarial)[0]
        rows = []
        for image, point, slope in zip(images, adversarial.detach(), gradient, strict=True):
            if norm == "Linf":
                point = point + step_size * torch.sign(slope)
                point = torch.maximum(torch.minimum(point, image + radius), image - radius)
            else:
                point = point + step_size * slope / slope.square().sum().sqrt()
                length = (point - image).square().sum().sqrt()
                if length > radius:
                    point = image + (point - image) * (radius / length)
            rows.append(point.clamp(0, 1))
        adversarial = torch.stack(rows)
    return adversarial


def plain_start(norm, count, shape, draws):
    """What the attack of adversarial training begins with, drawn from the same stream."""
    if norm == "Linf":
        return 2 * torch.rand(count, *shape, generator=draws) - 1
    normal = torch.randn(count, *shape, generator=draws)
    radii = torch.rand(count, 1, 1, 1, generator=draws) ** (1 / normal[0].numel())
    return normal / normal.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radii


def plain_at(network, images, labels, params, draws):
    begin, radius = images, float(params["radius"])
    if params["random_start"]:
        start = plain_start(params["norm"], len(images), images.shape[1:], draws).to(images.dtype)
        begin = (images + radius * start).clamp(0, 1)
    step = 2.5 * radius / params["steps"] if params["step_size"] is None else float(params["step_size"])
    getattr(network, params["mode"])()
    adversarial = plain_pgd(
        network, images, begin, lambda logits: F.cross_entropy(logits, labels, reduction="sum"), params["norm"], radius,
        params["steps"], step,
    )  # fmt: skip
    network.train()
    return F.cross_entropy(network(adversarial), labels)


def plain_trades(network, images, labels, params, draws):
    radius = float(params["radius"])
    begin = images + 0.001 * torch.randn(images.shape, generator=draws)
    step = 2.5 * radius / params["steps"] if params["step_size"] is None else float(params["step_size"])
    # images first, in the order of the reference's running statistics
    network.train()
    natural = network(images)
    getattr(network, params["mode"])()
    with torch.no_grad():
        reference = F.softmax(network(images), 1)
    adversarial = plain_pgd(
        network, images, begin,
        lambda logits: (reference * (reference.log() - F.log_softmax(logits, 1))).sum(), params["norm"], radius,
        params["steps"], step,
    )  # fmt: skip
    network.train()
    p, q = F.softmax(natural, 1), F.log_softmax(network(adversarial), 1)
    divergence = (p * (p.log() - q)).sum() / len(images)
    return F.cross_entropy(natural, labels) + params["beta"] * divergence


def plain_noise(network, images, labels, params, draws):
    noise = torch.randn(images.shape, generator=draws).to(images.dtype)
    logits = network(images + params["sigma"] * noise)
    picked = logits.log_softmax(1)[torch.arange(len(labels)), labels]
    return -picked.mean()


def normed(seed=0):
    """A small network with batch-norm, whose mode matters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3), nn.GELU(), nn.Flatten(),
        nn.Linear(144, 3),
    )  # fmt: skip


SETTINGS = [
    ("at", {"norm": "L2", "random_start": True}),
    ("at", {"norm": "Linf", "radius": "0.1", "random_start": True, "mode": "train"}),
    ("at", {"norm": "L2", "random_start": False, "step_size": "0.2"}),
    ("at", {"norm": "L2", "random_start": True, "warmup_epochs": 1}),
    ("at", {"norm": "L2", "radius": "0.9", "random_start": False, "step_size": "0.4", "warmup_epochs": 3}),
    ("trades", {"norm": "L2", "beta": 1.0, "mode": "train"}),
    ("gaussian_noise", {"sigma": 0.3}),
    ("trades", {"norm": "Linf", "radius": "0.1", "beta": 6.0}),
]
PLAIN = {"at": plain_at, "trades": plain_trades, "gaussian_noise": plain_noise}


def chosen(name, changes):
    if name == "gaussian_noise":
        return GaussianNoise(GaussianNoiseParams(**changes)), changes
    if name == "at":
        settings = attack(**{"warmup_epochs": 0, **changes})
        return AdversarialTraining(AdversarialTrainingParams(**settings)), settings
    settings = attack(**changes)
    return Trades(TradesParams(**settings)), settings


def in_epoch(settings, epoch):
    """The settings with the radius, and the step, of an epoch of the warm-up."""
    if not (epochs := settings.get("warmup_epochs")):
        return settings
    share = min(epoch + 1, epochs + 1) / (epochs + 1)
    scaled = {key: str(float(settings[key]) * share) for key in ("radius", "step_size") if settings[key] is not None}
    return {**settings, **scaled}


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
def test_ten_steps_equal_a_plain_loop_in_double(name, changes):
    method, settings = chosen(name, changes)
    network, plain = normed().double(), normed().double()
    data = torch.rand(STEPS, BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    labels = torch.arange(STEPS * BATCH).view(STEPS, BATCH) % 3
    draws, same_draws = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9) for one in (network, plain)]
    for images, label in zip(data, labels, strict=True):
        start = method.start(images.shape, draws)
        start = None if start is None else start.double()
        losses = (
            plain_objective(network, images, label, method=method, start=start).total,
            PLAIN[name](plain, images, label, in_epoch(settings, 0), same_draws),
        )
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for (key, found), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), key
    if name == "at" and settings["mode"] == "eval":  # the attack has left no trace in the running statistics
        assert torch.allclose(network[1].running_var, plain[1].running_var, rtol=1e-9)


# at Linf the sign of a gradient that is nearly zero is nothing but rounding in float32
@pytest.mark.parametrize(("name", "changes"), SETTINGS[:-1])
def test_training_ends_at_the_parameters_of_a_plain_loop(tmp_path, dataset, make_params, cpu, name, changes):
    options = {
        "train.epochs": 2, "train.batch_size": BATCH, "train.optimizer": "sgd", "train.learning_rate": 0.05,
        "train.momentum": 0.9, "train.weight_decay": 0.0, "train.schedule": "constant",
    }  # fmt: skip
    params, (method, settings) = make_params(options), chosen(name, changes)
    classifier, plain = normed(), normed()
    Trainer(
        classifier=classifier, train=dataset.splits["train"], classes=3, params=params.train, term=None, seed=5,
        device=cpu, folder=RunFolder(tmp_path), method=method,
    ).run(tmp_path / "curves")  # fmt: skip

    draws, data = generator("cpu", 5, "training draws"), dataset.splits["train"]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    done = 0
    for epoch in range(2):
        order = torch.randperm(len(data), generator=generator("cpu", 5, "order", epoch))
        for indices in order.split(BATCH):
            images, labels = data.images[indices].float() / 255, data.labels[indices]
            loss = PLAIN[name](plain.train(), images, labels, in_epoch(settings, epoch), draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    assert done == STEPS
    for (key, found), expected in zip(classifier.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4), key


# --- the norm of the input-gradient


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("arch", EACH_ARCHITECTURE)
def test_the_gradient_norm_against_a_double_loop(arch, meaning, norm):
    network, side = build(arch)
    images, labels, _, _ = samples(side)
    method = GradientNorm(GradientNormParams(norm=norm, weight=0.7, warmup_epochs=0))
    logits, gradients = loop_gradients(network, images, labels[:, None], "log_softmax", meaning)
    loss = sum(torch.logsumexp(logits[b], 0) - logits[b, labels[b]] for b in range(len(images))) / len(images)
    for b in range(len(images)):
        slope = gradients[b, 0]
        loss = loss + 0.7 * (slope.abs().sum() if norm == "L1" else slope.square().sum().sqrt()) / len(images)
    expected = parameter_gradient(network, loss)
    for differentiation in ("adjoint", "autograd"):
        form = ObjectiveParams(**FORM, differentiation=differentiation, batch_norm=meaning)
        terms = plain_objective(network, images, labels, form, method=method)
        assert relative(parameter_gradient(network, terms.total), expected) <= 1e-12, differentiation


@pytest.mark.parametrize("output", ["logit", "log_softmax"])
@pytest.mark.parametrize("meaning", ["class", "frozen"])
def test_the_gradient_norm_beside_the_alignment_shares_its_pass(output, meaning):
    """Both terms together are the sum of each alone: one more cotangent changes nothing of the others."""
    network, side = build("wrn_34_10")
    images, labels, class_indices, targets = samples(side)
    method = GradientNorm(GradientNormParams(norm="L1", weight=0.3, warmup_epochs=0))
    form = ObjectiveParams(**{**FORM, "output": output}, differentiation="adjoint", batch_norm=meaning)
    batch = AlignedBatch(images, labels, class_indices, targets)
    both = parameter_gradient(
        network, pag_objective(network, batch, form, lambda_=0.7, classes=CLASSES, method=method).total
    )
    aligned = parameter_gradient(network, pag_objective(network, batch, form, lambda_=0.7, classes=CLASSES).total)
    normed_alone = parameter_gradient(network, plain_objective(network, images, labels, form, method=method).total)
    plain = parameter_gradient(network, plain_objective(network, images, labels).total)
    assert relative(both, aligned + normed_alone - plain) <= 1e-12
    assert relative(both, aligned) > 1e-3


def test_the_weight_of_the_norm_rises_over_its_warmup():
    method = GradientNorm(GradientNormParams(norm="L1", weight=0.3, warmup_epochs=2))
    assert [method.weight_in(epoch) for epoch in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


# --- joined with the alignment, and in the training


@pytest.mark.parametrize("name", ["at", "trades"])
def test_the_alignment_is_added_to_the_method_on_clean_images(name):
    """Section 6: the same alignment term whatever the classification part, computed on the images as they are."""
    network, side = build("small_resnet")
    images, labels, class_indices, targets = samples(side)
    start = (
        start_in_ball("L2", images.shape, torch.Generator())
        if name == "at"
        else start_beside(images.shape, torch.Generator())
    ).double()
    method = (
        AdversarialTraining(AdversarialTrainingParams(**attack(random_start=True, warmup_epochs=0)))
        if name == "at"
        else Trades(TradesParams(**attack(beta=2.0)))
    )
    form = ObjectiveParams(**FORM, differentiation="adjoint", batch_norm="frozen")
    batch = AlignedBatch(images, labels, class_indices, targets)
    joined = pag_objective(network, batch, form, lambda_=0.7, classes=CLASSES, method=method, start=start)
    alone = pag_objective(network, batch, form, lambda_=0.7, classes=CLASSES)
    plain = plain_objective(network, images, labels, method=method, start=start)
    assert joined.alignment.item() == pytest.approx(alone.alignment.item(), rel=1e-12)
    assert joined.classification.item() == pytest.approx(plain.classification.item(), rel=1e-12)
    assert joined.total.item() == pytest.approx(plain.total.item() + 0.7 * alone.alignment.item(), rel=1e-12)
    assert plain.classification.item() > alone.classification.item()


class Normed(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(3), network

    def forward(self, images):
        return self.network(self.norm(images))


METHODS = {
    "at": AdversarialTraining(AdversarialTrainingParams(**attack(random_start=True, warmup_epochs=0))),
    "at in train mode": AdversarialTraining(
        AdversarialTrainingParams(**attack(norm="Linf", mode="train", random_start=True, warmup_epochs=0))
    ),
    "trades": Trades(TradesParams(**attack(beta=2.0))),
    "gaussian_noise": GaussianNoise(GaussianNoiseParams(sigma=0.3)),
    "gradient_norm": GradientNorm(GradientNormParams(norm="L2", weight=0.3, warmup_epochs=0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("at", True), ("at in train mode", False), ("trades", False), ("gaussian_noise", True), ("gradient_norm", True),
        ("gradient_norm", False),
    ],
)  # fmt: skip
def test_the_compiled_step_of_a_method_has_the_same_gradients(name, alone):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    network, side = build("small_resnet")
    # batch-norm tells the modes apart, in its statistics too
    network = Normed(network).double().train()
    images, labels, class_indices, targets = samples(side)
    method = METHODS[name]
    start = method.start(images.shape, torch.Generator().manual_seed(3))
    start = None if start is None else start.double()
    form = ObjectiveParams(**FORM, differentiation="adjoint", batch_norm="frozen")
    options = {"method": method, "start": start}
    found = []
    for compiles in (False, True):
        one = copy.deepcopy(network)
        compiled = torch.compile(one) if compiles else None
        if alone:
            terms = plain_objective(one, images, labels, form, compiled=compiled, **options)
        else:
            batch = AlignedBatch(images, labels, class_indices, targets)
            terms = pag_objective(one, batch, form, lambda_=0.7, classes=CLASSES, compiled=compiled, **options)
        found.append((terms, parameter_gradient(one, terms.total), one.norm.running_var))
        assert all(parameter.requires_grad for parameter in one.parameters())
        assert all(layer.training for layer in one.modules())
    eager, compiled = found
    assert compiled[0].total.item() == pytest.approx(eager[0].total.item(), rel=1e-12)
    assert torch.allclose(compiled[0].logits, eager[0].logits, rtol=1e-10)
    assert relative(compiled[1], eager[1]) <= 1e-10
    assert torch.allclose(compiled[2], eager[2], rtol=1e-12)


def test_every_method_is_built_from_its_section(make_params):
    params = make_params()
    methods = {name: build_method(name, params) for name in get_args(MethodName)}
    assert methods["standard"] is STANDARD
    assert {type(method) for method in methods.values()} == set(get_args(Method))
    for name, method in methods.items():
        assert getattr(method, "params", NoOptions()) == getattr(params, name)

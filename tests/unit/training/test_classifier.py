"""The classifier's training loop against loops written by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from pag_core.compute.randomness import generator
from pag_core.errors import EvaluationRefused, ParamsError, TrainingDiverged
from pag_core.gradient_store.targets import RepresentativeGradients
from pag_core.objective.methods import build_method
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.curves import read_curves
from pag_core.training import classifier as classifier_module
from pag_core.training import step as step_module
from pag_core.training.classifier import Trainer
from pag_core.training.optimization import build_optimizer, build_schedule
from pag_core.training.step import AlignmentTerm
from tests.fixtures.samples import Killed, KilledFolder

# --- schedules


@pytest.mark.parametrize("steps", [8, 40])
@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("cosine", lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2),
        ("step", lambda step, steps: 1.0 if step < steps / 2 else 0.1 if step < steps * 0.75 else 0.01),
        ("constant", lambda step, steps: 1.0),
    ],
)
def test_schedules_against_closed_forms(make_params, name, closed_form, steps):
    params = make_params({"train.schedule": name, "train.learning_rate": 0.2}).train
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], params)
    schedule = build_schedule(optimizer, params, steps)
    for step in range(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * closed_form(step, steps), rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers_take_their_parameters(make_params, name, kind):
    params = make_params({"train.optimizer": name, "train.momentum": 0.7, "train.weight_decay": 0.03}).train
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], params)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == params.learning_rate and group["weight_decay"] == 0.03
    assert group.get("momentum", 0.7) == 0.7


# --- the loop


@pytest.fixture
def make_trainer(dataset, make_params, make_classifier, cpu):
    def make(folder, *, weight=2.0, seed=5, **changes):
        options = {"train.epochs": 2, "train.batch_size": 8, "objective.classes_per_step": 3, **changes}
        params = make_params(options)
        term = None
        if weight is not None:
            targets = RepresentativeGradients(
                torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), dataset.splits["train"]
            )
            term = AlignmentTerm(targets, weight, params.objective)
        return Trainer(
            classifier=make_classifier(), train=dataset.splits["train"], classes=3, params=params.train,
            term=term, seed=seed, device=cpu, folder=folder,
            method=build_method(params.method, params), config=params.objective,
            validate=measured_on(dataset.splits["validation"]) if params.train.validate_every else None,
        )  # fmt: skip

    return make


def measured_on(split):
    """What validation gives, in a form that moves with every weight and draws from the global generators, as attacks do."""

    def validate(network):
        torch.manual_seed(0)
        noise = torch.rand(split.pixels().shape)
        with torch.no_grad():
            right = network(split.pixels() + noise).softmax(1).gather(1, split.labels[:, None])
        return {"clean": right.mean().item(), "robust": right.std().item()}

    return validate


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_vanilla_training_equals_a_loop_by_hand(tmp_path, dataset, make_trainer, make_classifier, optimizer):
    changes = {"train.optimizer": optimizer, "train.schedule": "cosine", "train.learning_rate": 0.01}
    trainer = make_trainer(RunFolder(tmp_path / "run"), weight=None, **changes)
    history = trainer.run(tmp_path / "curves")

    network, train = make_classifier().train(), dataset.splits["train"]
    params = trainer.params
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=params.weight_decay),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=params.momentum, weight_decay=params.weight_decay),
    }
    by_hand = kinds[optimizer](network.parameters())
    step, rows = 0, []
    for epoch in range(2):
        order = torch.randperm(36, generator=generator("cpu", 5, "order", epoch))
        assert sorted(order.tolist()) == list(range(36))
        losses, correct = 0.0, 0
        for start in range(0, 36, 8):
            chosen = order[start : start + 8]
            by_hand.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 10)) / 2
            logits = network(train.images[chosen].float() / 255)
            loss = F.cross_entropy(logits, train.labels[chosen])
            losses += loss.item() * len(chosen)
            correct += (logits.argmax(1) == train.labels[chosen]).sum().item()
            by_hand.zero_grad()
            loss.backward()
            by_hand.step()
            step += 1
        rows.append((epoch + 1, losses / 36, correct / 36))
    for (name, tensor), (_, expected) in zip(
        trainer.classifier.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert torch.allclose(tensor, expected, rtol=1e-4, atol=1e-6), name
    for row, (number, loss, accuracy) in zip(history, rows, strict=True):
        assert row.keys() == {"step", "accuracy", "cross_entropy"}
        assert (row["step"], row["accuracy"]) == (number, pytest.approx(accuracy))
        assert row["cross_entropy"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_the_average_of_the_weights_is_kept(tmp_path, make_trainer, monkeypatch, decay):
    """Against an average by hand of the weights after each of ten steps, batch-norm's statistics included."""
    plain = make_trainer(RunFolder(tmp_path / "plain"))
    with_batch_norm(plain)
    weights, original = [], plain._step

    def recording(*arguments):
        found = original(*arguments)
        weights.append({name: tensor.detach().clone() for name, tensor in plain.classifier.state_dict().items()})
        return found

    monkeypatch.setattr(plain, "_step", recording)
    torch.manual_seed(1)
    history = plain.run(tmp_path / "curves-plain")
    averaged = with_batch_norm(make_trainer(RunFolder(tmp_path / "averaged"), **{"train.ema_decay": decay}))
    torch.manual_seed(1)
    assert averaged.run(tmp_path / "curves") == history
    found = averaged.classifier.state_dict()
    assert len(weights) == 10
    for name in found:
        if not found[name].is_floating_point():
            assert torch.equal(found[name], weights[-1][name])
            continue
        by_hand = weights[0][name].double()
        for n in range(1, 10):
            keep = min(decay, (1 + n) / (10 + n))
            by_hand = keep * by_hand + (1 - keep) * weights[n][name].double()
        assert torch.allclose(found[name].double(), by_hand, rtol=1e-5, atol=1e-6), name
        constant = name in ("mean", "deviation")
        assert torch.equal(found[name], weights[-1][name]) == (decay == 0 or constant), name


def test_lambda_0_trains_the_vanilla_network(tmp_path, make_trainer):
    """An alignment term of weight 0 changes no weight."""
    networks = []
    for name, weight in (("zero", 0.0), ("none", None)):
        trainer = make_trainer(RunFolder(tmp_path / name), weight=weight)
        trainer.run(tmp_path / f"curves-{name}")
        networks.append(trainer.classifier.state_dict())
    for name in networks[0]:
        assert torch.allclose(networks[0][name], networks[1][name], rtol=1e-4, atol=1e-6), name


def test_lambda_is_smaller_in_the_first_epochs(tmp_path, make_trainer, monkeypatch):
    weights, original = [], step_module.pag_objective

    def recording(*arguments, lambda_, **options):
        weights.append(lambda_)
        return original(*arguments, lambda_=lambda_, **options)

    monkeypatch.setattr(step_module, "pag_objective", recording)
    changes = {"train.epochs": 3, "objective.weight_warmup": {"factor": 0.25, "epochs": 2}}
    history = make_trainer(RunFolder(tmp_path / "warm"), **changes).run(tmp_path / "curves-warm")
    # 36 images in batches of 8 are five steps
    assert weights == [0.5] * 10 + [2.0] * 5
    plain = make_trainer(RunFolder(tmp_path / "plain"), weight=0.5, **{"train.epochs": 3}).run(
        tmp_path / "curves-plain"
    )
    assert history[:2] == plain[:2] and history[2] != plain[2]


def test_a_run_killed_in_the_first_epochs_goes_on_with_its_lambda(tmp_path, make_trainer):
    changes = {"train.epochs": 3, "objective.weight_warmup": {"factor": 0.25, "epochs": 2}}
    whole = make_trainer(RunFolder(tmp_path / "whole"), **changes).run(tmp_path / "curves-whole")
    with pytest.raises(Killed):
        make_trainer(KilledFolder(tmp_path / "run", 1), **changes).run(tmp_path / "curves")
    assert make_trainer(RunFolder(tmp_path / "run"), **changes).run(tmp_path / "curves") == whole


def test_alignment_training_aligns(tmp_path, make_trainer):
    changes = {"train.epochs": 12, "train.learning_rate": 0.01, "objective.classes_per_step": "all"}
    history = make_trainer(RunFolder(tmp_path / "run"), **changes).run(tmp_path / "curves")
    # the sum over three classes starts near three, at no alignment
    assert 2 < history[0]["alignment"] < 3.6
    assert history[-1]["alignment"] < 0.7 * history[0]["alignment"]
    # as macOS leaves beside each file of a foreign disk
    (tmp_path / "curves/plots/metrics/._alignment.tsv").write_bytes(b"\0\5\x16\7\xff")
    curves = read_curves(tmp_path / "curves")
    assert curves.keys() == {"accuracy", "cross_entropy", "alignment"}
    assert curves["alignment"] == [(int(row["step"]), pytest.approx(row["alignment"])) for row in history]


@pytest.fixture(scope="module")
def unbroken():
    """What unbroken runs came to, each made once: history, weights and curves by what was chosen."""
    return {}


def curve_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.tsv")}


@pytest.mark.parametrize(("reads", "survive", "step"), [(2, 1, 2), (2, 2, 4), (2, 3, 5), (2, 4, 7), (100, 1, 5)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.optimizer": "sgd", "train.augmentation": "crop_flip"},
        {"method": "at", "at.steps": 2, "train.augmentation": "crop_flip"},
        {"method": "trades", "trades.steps": 1},
        {"method": "gradient_norm", "gradient_norm.warmup_epochs": 1},
        {"method": "gaussian_noise", "train.schedule": "step"},
        {"train.ema_decay": 0.9},
        {"train.validate_every": 1, "train.keep": "best", "train.ema_decay": 0.5, "train.augmentation": "crop_flip"},
    ],
)
def test_resumed_training_is_bit_identical(
    tmp_path, make_trainer, monkeypatch, cpu, unbroken, reads, survive, step, changes
):
    """Broken in mid-epoch (a checkpoint every two steps of five) and at the border of epochs."""
    monkeypatch.setattr(classifier_module, "STEPS_BETWEEN_READS", reads)
    changes = {"objective.classes_per_step": 2, **changes}
    if (chosen := (reads, str(changes))) not in unbroken:
        whole = make_trainer(RunFolder(tmp_path / "whole"), **changes)
        history = whole.run(tmp_path / "curves-whole")
        unbroken[chosen] = history, whole.classifier.state_dict(), curve_files(tmp_path / "curves-whole")
    expected, weights, curves = unbroken[chosen]
    with pytest.raises(Killed):
        make_trainer(KilledFolder(tmp_path / "run", survive), **changes).run(tmp_path / "curves")
    assert RunFolder(tmp_path / "run").load_checkpoint(cpu)["step"] == step
    torch.manual_seed(12345)
    resumed = make_trainer(RunFolder(tmp_path / "run"), **changes)
    torch.manual_seed(54321)
    assert resumed.run(tmp_path / "curves") == expected
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name
    assert curve_files(tmp_path / "curves") == curves and len(curves) == 3 + 2 * ("train.keep" in changes)


def test_the_seed_fixes_everything_and_another_seed_changes_it(tmp_path, make_trainer):
    runs = []
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)
        trainer = make_trainer(RunFolder(tmp_path / str(number)), seed=seed, **{"train.augmentation": "crop_flip"})
        runs.append(trainer.run(tmp_path / f"curves-{number}"))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("weight", [2.0, None])
def test_memory_format_and_precision_change_the_rounding_only(tmp_path, make_trainer, weight):
    def trained(name, **changes):
        trainer = make_trainer(RunFolder(tmp_path / name), weight=weight, **changes)
        history = trainer.run(tmp_path / "curves" / name)
        return torch.cat([p.detach().flatten() for p in trainer.classifier.parameters()]), history

    plain, history = trained("plain")
    layout, _ = trained("layout", **{"train.channels_last": True})
    assert torch.allclose(layout, plain, rtol=1e-3, atol=1e-5)
    half, half_history = trained("half", **{"train.precision": "bfloat16"})
    assert half.dtype == torch.float32 and not torch.allclose(half, plain, rtol=1e-5, atol=1e-7)
    assert half_history[-1]["cross_entropy"] == pytest.approx(history[-1]["cross_entropy"], rel=0.05)


@pytest.mark.parametrize("weight", [2.0, None])
def test_the_backward_pass_too_is_computed_in_the_precision(tmp_path, make_trainer, recorded_precision, weight):
    trainer = make_trainer(RunFolder(tmp_path), weight=weight, **{"train.precision": "bfloat16"})
    seen = recorded_precision(classifier_module, trainer.classifier)
    trainer.run(tmp_path / "curves")
    assert len(seen) >= 10 and set(seen) == {"bfloat16"}


def test_a_precision_that_the_device_lacks_is_refused(tmp_path, make_trainer):
    with pytest.raises(ParamsError, match=r"train\.precision tf32 is a mode of NVIDIA GPUs, and the device is cpu"):
        make_trainer(RunFolder(tmp_path), **{"train.precision": "tf32"}).run(tmp_path / "curves")


def with_batch_norm(trainer):
    torch.manual_seed(0)
    trainer.classifier.network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.2), torch.nn.SiLU(), torch.nn.Flatten(),
        torch.nn.Linear(144, 3),
    )  # fmt: skip
    trainer.__post_init__()
    return trainer


def test_batch_norm_state_survives_a_kill(tmp_path, make_trainer):
    changes = {"objective.batch_norm": "repeat", "train.ema_decay": 0.5}
    whole = with_batch_norm(make_trainer(RunFolder(tmp_path / "whole"), **changes))
    torch.manual_seed(1)
    whole.run(tmp_path / "a")
    broken = with_batch_norm(make_trainer(KilledFolder(tmp_path / "run", 1), **changes))
    torch.manual_seed(1)
    with pytest.raises(Killed):
        broken.run(tmp_path / "b")
    resumed = with_batch_norm(make_trainer(RunFolder(tmp_path / "run"), **changes))
    torch.manual_seed(2)
    resumed.run(tmp_path / "b")
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, make_trainer, monkeypatch, cpu, step):
    calls, original = [], step_module.pag_objective

    def spoiled(*arguments, **options):
        calls.append(1)
        terms = original(*arguments, **options)
        if len(calls) < step:
            return terms
        return (
            copy.replace(terms, total=terms.total * math.nan)
            if hasattr(copy, "replace")
            else type(terms)(terms.total * math.nan, terms.classification, terms.alignment, terms.logits)
        )

    monkeypatch.setattr(step_module, "pag_objective", spoiled)
    with pytest.raises(TrainingDiverged, match=f"classifier: the loss of step {step} is nan.*lambda"):
        make_trainer(RunFolder(tmp_path / "run")).run(tmp_path / "curves")
    state = RunFolder(tmp_path / "run").load_checkpoint(cpu)
    assert (state is None) if step <= 5 else state["step"] == 5
    if state:
        assert all(torch.isfinite(tensor).all() for tensor in state["classifier"].values())


# --- validation between epochs


@pytest.mark.parametrize("decay", [None, 0.5])
def test_validation_changes_nothing_else(tmp_path, make_trainer, decay):
    """With batch-norm, dropout and augmentation, whose draws and statistics it might."""
    found = []
    for every in (0, 1):
        changes = {"train.ema_decay": decay, "train.augmentation": "crop_flip", "train.validate_every": every}
        trainer = with_batch_norm(make_trainer(RunFolder(tmp_path / str(every)), **changes))
        torch.manual_seed(1)
        history = trainer.run(tmp_path / f"curves-{every}")
        found.append((trainer.classifier.state_dict(), history))
    (plain, rows), (validated, more) = found
    assert all(torch.equal(tensor, validated[name]) for name, tensor in plain.items())
    assert rows == [{key: value for key, value in row.items() if not key.startswith("validation_")} for row in more]
    assert all({"validation_clean", "validation_robust"} <= row.keys() for row in more)


def test_it_is_of_every_nth_epoch_and_of_the_last(tmp_path, make_trainer):
    history = make_trainer(RunFolder(tmp_path / "run"), **{"train.epochs": 5, "train.validate_every": 2}).run(tmp_path)
    assert [row["step"] for row in history if "validation_clean" in row] == [2, 4, 5]
    assert read_curves(tmp_path)["validation_clean"] == [(n, history[n - 1]["validation_clean"]) for n in (2, 4, 5)]


ROBUST, CLEAN = [0.2, 0.6, 0.6, 0.6, 0.1], [0.9, 0.7, 0.8, 0.8, 0.5]


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize(("by", "best"), [("robust", 4), ("clean", 1)])
def test_the_best_epoch_is_kept_where_equal_by_clean_accuracy_then_the_later(
    tmp_path, make_trainer, cpu, decay, by, best
):
    changes = {"train.epochs": 5, "train.validate_every": 1, "train.keep": "best", "train.best_by": by}
    trainer = make_trainer(RunFolder(tmp_path / "run"), **changes, **{"train.ema_decay": decay})
    seen = []

    def validate(network):
        assert not network.training
        # where an average is kept it is the average that is measured
        assert network is (trainer.classifier if decay is None else trainer.average.module)
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"robust": ROBUST[len(seen) - 1], "clean": CLEAN[len(seen) - 1]}

    trainer.validate = validate
    trainer.run(tmp_path / "curves")
    assert trainer.kept_epoch == best and len(seen) == 5
    kept = trainer.classifier.state_dict()
    for epoch, weights in enumerate(seen, start=1):
        assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items()) == (epoch == best)


def test_without_best_the_last_is_kept(tmp_path, make_trainer):
    trainer = make_trainer(RunFolder(tmp_path / "run"), **{"train.validate_every": 1})
    trainer.validate = lambda network: {"robust": -float(len(trainer.history)), "clean": 0.0}
    trainer.run(tmp_path / "curves")
    assert trainer.kept_epoch == 2


def test_a_network_that_cannot_be_validated_is_refused_with_its_epoch(tmp_path, make_trainer):
    trainer = make_trainer(RunFolder(tmp_path / "run"), **{"train.validate_every": 2})

    def validate(network):
        raise EvaluationRefused("the model returns logits that are not finite")

    trainer.validate = validate
    with pytest.raises(
        EvaluationRefused, match=r"after epoch 2: the model returns .*; or set train.validate_every to 0"
    ):
        trainer.run(tmp_path / "curves")


def test_more_classes_per_step_than_classes_are_refused(tmp_path, make_trainer):
    with pytest.raises(
        ParamsError, match=r"classes_per_step is 4, the dataset has 3 classes; set it to at most 3, or all"
    ):
        make_trainer(RunFolder(tmp_path), **{"objective.classes_per_step": 4})
    make_trainer(RunFolder(tmp_path), **{"objective.classes_per_step": 3})
    # without an alignment term the number means nothing
    make_trainer(RunFolder(tmp_path), weight=None, **{"objective.classes_per_step": 4})

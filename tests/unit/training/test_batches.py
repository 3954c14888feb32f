"""Batches and their augmentation against loops written by hand."""

import math
import threading

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from pag_core.compute.randomness import generator
from pag_core.gradient_store.targets import GradientBatch, TargetGradients
from pag_core.objective.pag import drawn_classes
from pag_core.training.augmentation import CropsAndFlips, draw_crops_and_flips
from pag_core.training.batches import Batches
from tests.fixtures.samples import objective_terms


def moved_by_hand(plane, drawn):
    """One sample's crop and flip by padding and slicing; differentiable."""
    top, left, flipped = drawn.tolist()
    height, width = plane.shape[-2:]
    cropped = F.pad(plane, (4,) * 4)[..., 4 + top : 4 + top + height, 4 + left : 4 + left + width]
    return cropped.flip(-1) if flipped else cropped


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 12)])
def test_augmentation_against_torchvision_one_by_one(shape, dtype):
    batch, kept = 24, 2
    images, targets = torch.rand(batch, *shape), (50 * torch.randn(batch, kept, *shape)).to(dtype)
    drawn = draw_crops_and_flips(batch, torch.Generator().manual_seed(5))
    assert drawn.shape == (batch, 3) and drawn[:, :2].min() < 0 < drawn[:, :2].max() <= 4
    assert 0 < drawn[:, 2].sum() < batch
    move = CropsAndFlips(drawn, *shape[1:])
    moved, moved_targets = move(images), move(targets)
    assert moved.shape == images.shape and moved_targets.shape == targets.shape and moved.is_contiguous()
    assert moved_targets.dtype == dtype and move.mask.shape == (batch, 1, *shape[1:])
    for b in range(batch):
        top, left, flipped = drawn[b].tolist()

        def alone(plane, top=top, left=left, flipped=flipped):
            cropped = TF.crop(TF.pad(plane, [4]), 4 + top, 4 + left, shape[1], shape[2])
            return TF.hflip(cropped) if flipped else cropped

        assert torch.equal(moved[b], alone(images[b]))
        assert torch.equal(move.mask[b].float(), alone(torch.ones(1, *shape[1:])))
        for k in range(kept):
            assert torch.equal(moved_targets[b, k], alone(targets[b, k]))


def test_all_offsets_and_both_flips_occur():
    drawn = draw_crops_and_flips(4000, torch.Generator().manual_seed(0))
    counts = torch.bincount((drawn[:, 0] + 4) * 9 + drawn[:, 1] + 4, minlength=81).double()
    # 81 offsets, each with probability 1/81; five standard deviations
    assert len(counts) == 81 and (counts - 4000 / 81).abs().max() < 5 * math.sqrt(4000 / 81)
    assert abs(drawn[:, 2].double().mean() - 0.5) < 0.05
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


@pytest.mark.parametrize("differentiation", ["adjoint", "autograd"])
@pytest.mark.parametrize("output", ["logit", "log_softmax"])
def test_augmentation_equals_differentiating_through_it(make_classifier, output, differentiation):
    """Value and parameter gradients of Eq. 4, against autograd back to the unaugmented image, borders included."""
    batch, shape, classes = 10, (3, 8, 8), 3
    draws = torch.Generator().manual_seed(3)
    classifier = make_classifier(shape=shape, width=4).double()
    images = torch.rand(batch, *shape, generator=draws, dtype=torch.float64)
    targets = torch.randn(batch, classes, *shape, generator=draws, dtype=torch.float64)
    labels, every = torch.arange(batch) % classes, torch.arange(classes).expand(batch, classes)
    drawn = draw_crops_and_flips(batch, draws)
    assert (drawn[:, :2].abs() >= 3).any(1).sum() >= 3

    source = images.clone().requires_grad_()
    logits = classifier(torch.stack([moved_by_hand(source[b], drawn[b]) for b in range(batch)]))
    values = logits if output == "logit" else logits.log_softmax(1)
    expected = F.cross_entropy(logits, labels)
    for c in range(classes):
        (back,) = torch.autograd.grad(values[:, c].sum(), source, create_graph=True)
        expected = expected + 2 * (1 - F.cosine_similarity(back.flatten(1), targets[:, c].flatten(1))).mean()
    expected_gradients = torch.autograd.grad(expected, list(classifier.parameters()))

    move, rows = CropsAndFlips(drawn, *shape[1:]), GradientBatch(targets)
    options = {
        "weight": 2.0,
        "classes": classes,
        "output": output,
        "scaling": "all",
        "differentiation": differentiation,
        "batch_norm": "repeat",
    }
    found = objective_terms(
        classifier, move(images), labels, every, rows.with_codes(move(rows.codes)).dequantised(), mask=move.mask,
        target_norm=rows.norms(), **options,
    ).total  # fmt: skip
    found_gradients = torch.autograd.grad(found, list(classifier.parameters()))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    flat, flat_expected = (torch.cat([g.flatten() for g in part]) for part in (found_gradients, expected_gradients))
    assert (flat - flat_expected).norm() <= 1e-12 * flat_expected.norm()
    # the border matters: without mask and norm it is another loss
    plain = objective_terms(classifier, move(images), labels, every, move(targets), **options).total
    assert abs(plain.item() - expected.item()) > 1e-3


class Stored(TargetGradients):
    """Quantised rows at hand; remembers what was asked for."""

    def __init__(self, codes, scales, ahead=0):
        self.codes, self.scales, self.ahead, self.asked, self.threads = codes, scales, ahead, [], set()

    def rows(self, image_indices, class_indices, *, epoch=0):
        self.asked.append((epoch, image_indices, class_indices))
        self.threads.add(threading.get_ident())
        return GradientBatch(*(part[image_indices[:, None], class_indices] for part in (self.codes, self.scales)))


def make_batches(dataset, params, ahead=0, targets=True):
    draws = torch.Generator().manual_seed(8)
    codes = torch.randint(-127, 128, (36, 3, 1, 8, 8), generator=draws, dtype=torch.int8)
    stored = Stored(codes, torch.rand(36, 3, generator=draws), ahead) if targets else None
    return Batches(
        dataset.splits["train"], classes=3, params=params.train, targets=stored, drawn=2, seed=4,
        device=torch.device("cpu"),
    )  # fmt: skip


def taken(batches, step=0, state=None):
    """Every batch from `step` on, and the state of the draws before each."""
    batches.start(step, state)
    found = []
    try:
        for _ in range(step, batches.steps):
            found.append((batches.draws_state(), batches.take()))
    finally:
        batches.close()
    return found


def parts_of(batch):
    """Everything in a batch by name; its images and labels stand in `aligned` again."""
    parts = {name: value for name, value in vars(batch).items() if name != "aligned"}
    return parts | ({} if batch.aligned is None else {f"aligned.{n}": v for n, v in batch.aligned._asdict().items()})


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize("ahead", [0, 3])
def test_batches_against_a_loop_by_hand(dataset, make_params, augmentation, ahead):
    params = make_params({"train.epochs": 2, "train.batch_size": 8, "train.augmentation": augmentation})
    batches = make_batches(dataset, params, ahead)
    found = taken(batches)
    stored, train, draws = batches.targets, dataset.splits["train"], generator("cpu", 4, "training draws")
    assert len(found) == 10 and [batches.size(step) for step in range(10)] == 2 * [8, 8, 8, 8, 4]
    # a background thread of its own where rows are asked for ahead
    assert (stored.threads == {threading.get_ident()}) == (ahead == 0) and len(stored.threads) == 1
    for step, (_, batch) in enumerate(found):
        epoch, number = divmod(step, 5)
        chosen = torch.randperm(36, generator=generator("cpu", 4, "order", epoch))[number * 8 : number * 8 + 8]
        class_indices = drawn_classes(len(chosen), 3, 2, draws)
        images = train.images[chosen].float() / 255
        targets = stored.codes[chosen[:, None], class_indices].float()
        targets *= stored.scales[chosen[:, None], class_indices][..., None, None, None]
        norms = targets.flatten(2).norm(dim=2)
        assert torch.equal(batch.labels, train.labels[chosen]) and torch.equal(
            batch.aligned.class_indices, class_indices
        )
        if augmentation == "crop_flip":
            drawn = draw_crops_and_flips(len(chosen), draws)
            images, targets = (
                torch.stack([moved_by_hand(part[b], drawn[b]) for b in range(len(chosen))])
                for part in (images, targets)
            )
            mask = torch.stack([moved_by_hand(torch.ones(1, 8, 8), row) for row in drawn])
            assert torch.equal(batch.aligned.mask.float(), mask) and torch.allclose(batch.aligned.target_norm, norms)
        else:
            assert batch.aligned.mask is None and batch.aligned.target_norm is None
        assert torch.equal(batch.images, images) and torch.equal(batch.aligned.images, images)
        assert torch.equal(batch.aligned.labels, batch.labels)
        assert torch.allclose(batch.aligned.targets, targets, rtol=1e-6)


@pytest.mark.parametrize("ahead", [0, 2, 20])
@pytest.mark.parametrize("targets", [True, False])
def test_batches_go_on_from_any_step(dataset, make_params, ahead, targets):
    """The state of the draws is that of the first step not taken, however many are drawn ahead."""
    params = make_params({"train.epochs": 2, "train.batch_size": 8, "train.augmentation": "crop_flip"})
    whole = taken(make_batches(dataset, params, 0, targets))
    ahead_of = taken(make_batches(dataset, params, ahead, targets))
    for step in (0, 3, 5, 9):
        for (_, batch), (_, expected) in zip(
            taken(make_batches(dataset, params, ahead, targets), step, ahead_of[step][0]), whole[step:], strict=True
        ):
            for name, value in parts_of(expected).items():
                other = parts_of(batch)[name]
                same = torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value
                assert same, name


def test_an_error_of_the_background_thread_ends_the_run(dataset, make_params):
    batches = make_batches(dataset, make_params({"train.batch_size": 8}), ahead=2)
    batches.targets.codes = batches.targets.codes[:10]
    with pytest.raises(IndexError):
        taken(batches)

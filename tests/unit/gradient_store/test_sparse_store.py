"""A store of some classes of each image: what it keeps, what the terms count, and how it is fed."""

import itertools

import numpy as np
import pytest
import torch
import zarr

from pag_core.errors import ParamsError
from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.store import GradientStore
from pag_core.gradient_store.targets import DenseGradients
from pag_core.gradients.distillation import stored_classes
from pag_core.gradients.score_based import ScoreBased
from pag_core.objective.pag import AlignedBatch, pag_objective
from pag_core.params.sections import FeedParams, ObjectiveParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.batches import Batches
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.samples import Killed, KilledFolder, KilledUnits, distilled_store, gaussian, sbg_params

CPU = torch.device("cpu")
CLASSES = 5


@pytest.fixture
def five_classes(make_dataset):
    return make_dataset(classes=CLASSES)


@pytest.fixture
def run_distill(five_classes, make_predictor):
    predictor = make_predictor(five_classes)

    def run(path, folder, kept=3, **changes):
        maker, store = ScoreBased(predictor, sbg_params(**changes)), {"dtype": "float32", "held_out_images": 6}
        return distilled_store(path, maker, five_classes, folder, classes_per_image=kept, **store)

    return run


def test_an_image_keeps_its_own_class_first_and_others_uniformly():
    labels = torch.arange(40_000) % CLASSES
    kept = stored_classes(labels, CLASSES, 3, torch.Generator().manual_seed(1))
    assert kept.shape == (40_000, 3) and kept.dtype == torch.int64 and torch.equal(kept[:, 0], labels)
    assert all(len(set(row)) == 3 for row in kept[:2000].tolist())
    for label in range(CLASSES):
        others = torch.bincount(kept[labels == label][:, 1:].flatten(), minlength=CLASSES)
        assert others[label] == 0
        # each of the four others in half of 8,000 images, five standard deviations
        assert (others[others > 0] - 4000).abs().max() < 5 * (8000 * 0.25) ** 0.5


def test_what_is_kept_is_what_a_dense_store_has(tmp_path, five_classes, run_distill):
    dense = run_distill(tmp_path / "dense.zarr", RunFolder(tmp_path / "a"), kept=None)
    sparse = run_distill(tmp_path / "sparse.zarr", RunFolder(tmp_path / "b"))
    assert read_manifest(sparse)["kind"] == "sparse" and read_manifest(dense)["kind"] == "dense"
    images = len(five_classes.splits["train"])
    found = GradientStore(sparse).gradients(five_classes, "train", CPU)
    slots, indices = torch.arange(3).expand(images, 3), torch.arange(images)
    classes = found.classes_of(indices, slots)
    assert torch.equal(classes[:, 0], five_classes.splits["train"].labels)
    expected = GradientStore(dense).gradients(five_classes, "train", CPU)(indices, classes)
    assert torch.allclose(found(indices, slots), expected, rtol=1e-3, atol=1e-6)
    # images held out keep all
    every = torch.arange(CLASSES).expand(6, CLASSES)
    pair = [
        GradientStore(path).gradients(five_classes, "test", CPU)(torch.arange(6), every) for path in (sparse, dense)
    ]
    assert torch.allclose(*pair, rtol=1e-3, atol=1e-6)
    # another shard draws other classes
    table = np.asarray(zarr.open_group(sparse, mode="r")["train/classes"])
    labels = five_classes.splits["train"].labels.numpy()
    same = [n for n in range(8) if labels[n] == labels[n + 8]]
    assert not all((table[n] == table[n + 8]).all() for n in same) or not same


def test_a_killed_distillation_keeps_its_classes(tmp_path, run_distill):
    whole = run_distill(tmp_path / "whole.zarr", RunFolder(tmp_path / "a"))
    with pytest.raises(Killed):
        run_distill(tmp_path / "again.zarr", KilledUnits(tmp_path / "b", 2))
    again = run_distill(tmp_path / "again.zarr", RunFolder(tmp_path / "b"))
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    assert any(name.startswith("train/classes/c/") for name in names)
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in names)


@pytest.mark.parametrize("scaling", ["all", "drawn"])
@pytest.mark.parametrize("drawn", [1, 2, 3])
def test_the_expected_loss_is_that_of_the_dense_store(make_classifier, scaling, drawn):
    """Over every draw of the store (own class and two of four others) and every draw of a step from it, in float64."""
    classifier = make_classifier(classes=CLASSES).double()
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels, targets = torch.tensor([2]), gaussian(1, CLASSES).double()
    form = ObjectiveParams(
        output="logit", classes_per_step=drawn, scaling=scaling, differentiation="autograd", batch_norm="class",
        weight_warmup=None,
    )  # fmt: skip

    def alignment(classes, weights):
        index = torch.tensor([classes])
        batch = AlignedBatch(images, labels, index, targets[:, classes], weights=weights)
        terms = pag_objective(classifier, batch, form, lambda_=1.0, classes=CLASSES)
        (gradient,) = torch.autograd.grad(terms.alignment, classifier.network[0].weight)
        return terms.alignment.detach(), gradient

    unweighted = []
    kept = [[2, *others] for others in itertools.combinations([0, 1, 3, 4], 2)]
    sparse = []
    for classes in kept:
        store = DenseGradients(targets[:, classes], torch.ones(1, 3), torch.tensor([classes]))
        for slots in itertools.combinations(range(3), drawn):
            chosen = torch.tensor([slots])
            found = store.classes_of(torch.tensor([0]), chosen)[0].tolist()
            assert found == [classes[slot] for slot in slots]
            sparse.append(alignment(found, store.weights_of(chosen, CLASSES)))
            unweighted.append(alignment(found, None)[0])
    dense = [alignment(list(classes), None) for classes in itertools.combinations(range(CLASSES), drawn)]
    for found, expected in zip(zip(*sparse, strict=True), zip(*dense, strict=True), strict=True):
        mean, exact = torch.stack(found).mean(0), torch.stack(expected).mean(0)
        # weights are float32
        assert torch.allclose(mean, exact, rtol=1e-6, atol=1e-9)
    # without weights the own class would count too much
    mean = torch.stack([value for value, _ in dense]).mean()
    assert not torch.allclose(torch.stack(unweighted).mean(), mean, rtol=1e-3)


@pytest.mark.parametrize("mode", ["resident", "memory_map", "window"])
def test_every_feed_gives_the_rows_with_their_classes(tmp_path, five_classes, run_distill, mode):
    sparse = run_distill(tmp_path / "sparse.zarr", RunFolder(tmp_path / "a"))
    (tmp_path / "cache" / "run").mkdir(parents=True)
    params = FeedParams(mode="auto" if mode == "window" else mode, budget_gb=None, window_shards=None)
    if mode == "window":
        params = params.model_copy(update={"window_shards": 2})
    feed = open_feed(
        GradientStore(sparse), five_classes, CPU, params=params, folder=RunFolder(tmp_path / "cache" / "run")
    )
    root = zarr.open_group(sparse, mode="r")
    stored, scales, table = (np.asarray(root[f"train/{name}"]) for name in ("gradient", "scale", "classes"))
    images = len(five_classes.splits["train"])
    order = feed.epoch_order(images, seed=1, epoch=0)
    slots = torch.rand(images, 3, generator=torch.Generator().manual_seed(1)).topk(2, dim=1).indices
    for chosen in order.split(7):
        found = feed.rows(chosen, slots[chosen]).dequantised()
        classes = feed.classes_of(chosen, slots[chosen])
        for b, image in enumerate(chosen.tolist()):
            for k, slot in enumerate(slots[image].tolist()):
                assert classes[b, k] == table[image, slot]
                expected = stored[image, slot] * scales[image, slot]
                assert np.allclose(found[b, k].numpy(), expected, rtol=1e-6)
    feed.close()


@pytest.fixture
def make_trainer(five_classes, make_params, make_classifier):
    def make(store, folder, **changes):
        options = {"train.epochs": 2, "train.batch_size": 8, **changes}
        params = make_params({"objective.classes_per_step": 2, **options})
        term = AlignmentTerm(GradientStore(store).gradients(five_classes, "train", CPU), 2.0, params.objective)
        return Trainer(
            classifier=make_classifier(classes=CLASSES), train=five_classes.splits["train"], classes=CLASSES,
            params=params.train, term=term, seed=5, device=CPU, folder=folder,
        )  # fmt: skip

    return make


def test_training_draws_from_what_is_kept(tmp_path, five_classes, run_distill, make_trainer):
    sparse = run_distill(tmp_path / "sparse.zarr", RunFolder(tmp_path / "a"))
    trainer = make_trainer(sparse, RunFolder(tmp_path / "run"), **{"train.augmentation": "crop_flip"})
    batches: Batches = trainer.batches
    batches.start(0, None)
    table = torch.from_numpy(np.asarray(zarr.open_group(sparse, mode="r")["train/classes"])).long()
    own, other = 3 / CLASSES, 3 / CLASSES * (CLASSES - 1) / 2
    order = batches.targets.epoch_order(len(five_classes.splits["train"]), seed=5, epoch=0)
    seen = set()
    for start in range(0, 24, 8):
        aligned = batches.take().aligned
        for b, image in enumerate(order[start : start + 8].tolist()):
            classes = aligned.class_indices[b].tolist()
            assert set(classes) <= set(table[image].tolist()) and len(set(classes)) == 2
            expected = [own if label == table[image, 0] else other for label in classes]
            assert aligned.weights[b].tolist() == pytest.approx(expected)
            seen |= {label == int(table[image, 0]) for label in classes}
    assert seen == {True, False}


def test_a_killed_training_goes_on(tmp_path, run_distill, make_trainer):
    sparse = run_distill(tmp_path / "sparse.zarr", RunFolder(tmp_path / "a"))
    whole = make_trainer(sparse, RunFolder(tmp_path / "whole"))
    expected = whole.run(tmp_path / "curves-whole")
    with pytest.raises(Killed):
        make_trainer(sparse, KilledFolder(tmp_path / "run", 1)).run(tmp_path / "curves")
    resumed = make_trainer(sparse, RunFolder(tmp_path / "run"))
    assert resumed.run(tmp_path / "curves") == expected
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name


def test_more_classes_a_step_than_are_kept_are_refused(tmp_path, run_distill, make_trainer):
    sparse = run_distill(tmp_path / "sparse.zarr", RunFolder(tmp_path / "a"))
    message = (
        r"classes_per_step is 4, the store keeps 3 classes of an image \(gradient_store.classes_per_image\); set it to"
    )
    with pytest.raises(ParamsError, match=message):
        make_trainer(sparse, RunFolder(tmp_path / "run"), **{"objective.classes_per_step": 4})
    trainer = make_trainer(sparse, RunFolder(tmp_path / "run"), **{"objective.classes_per_step": "all"})
    trainer.batches.start(0, None)
    assert trainer.batches.take().aligned.class_indices.shape == (8, 3)

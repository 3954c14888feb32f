"""Score-based gradients asked in the step: of the augmented images, with the noise of the step, by the teacher of the store."""

import pytest
import torch

from pag_core.compute.randomness import generator
from pag_core.diffusion.network import architecture
from pag_core.errors import StoreError, WeightsError
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.online import open_online
from pag_core.gradients.score_based import ScoreBased, score_based_gradients
from pag_core.objective.pag import drawn_classes
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.saved_network import load_network, save_network
from pag_core.training.augmentation import CropsAndFlips, draw_crops_and_flips
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.samples import Killed, KilledFolder, distilled_store, flip, sbg_params

CPU = torch.device("cpu")


@pytest.fixture
def teacher(tmp_path, dataset, make_predictor, make_params):
    """A saved diffusion model, and the predictor that it holds."""
    predictor = make_predictor(dataset)
    changes = {"diffusion.channel_multipliers": [1], "diffusion.timestep_window": None}
    card = {
        "kind": "diffusion",
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "dataset": dataset.fingerprint,
        "architecture": architecture(make_params(changes).diffusion),
    }
    save_network(tmp_path / "diffusion", predictor.network.state_dict(), card)
    return tmp_path / "diffusion", predictor


@pytest.fixture
def online_store(tmp_path, dataset, teacher):
    def make(name="online.zarr", **options):
        folder, predictor = teacher
        sbg = sbg_params(**options)
        inputs = {"dataset": dataset.fingerprint, "diffusion model": load_network(folder, "diffusion").fingerprint}
        record = {"inputs": inputs, "params": {"sbg": sbg.model_dump(mode="json", by_alias=True)}}
        return distilled_store(
            tmp_path / name, ScoreBased(predictor, sbg), dataset, tmp_path / f"work-{name}", teacher=folder,
            provenance=record, source="sbg_online",
        )  # fmt: skip

    return make


@pytest.fixture
def make_trainer(dataset, make_params, make_classifier):
    def make(store, folder, **changes):
        options = {"train.epochs": 2, "train.batch_size": 8, **changes}
        params = make_params({"objective.classes_per_step": 2, **options})
        term = AlignmentTerm(open_online(GradientStore(store), dataset, CPU), 2.0, params.objective)
        return Trainer(
            classifier=make_classifier(), train=dataset.splits["train"], classes=3, params=params.train, term=term,
            seed=5, device=CPU, folder=folder,
        )  # fmt: skip

    return make


def test_the_store_holds_the_teacher_and_held_out_gradients_alone(dataset, online_store):
    store = online_store()
    manifest = read_manifest(store)
    assert (manifest["kind"], manifest["source"], manifest["images"]) == ("online", "sbg_online", {"test": 10})
    assert {"teacher/card.json", "teacher/weights.safetensors"} <= manifest["files"].keys()
    assert not any(name.startswith("train") for name in manifest["files"])
    found = GradientStore(store).gradients(dataset, "test", CPU)(torch.arange(10), torch.arange(3).expand(10, 3))
    assert found.shape == (10, 3, 1, 8, 8) and found.abs().max() > 0
    with pytest.raises(StoreError, match="holds no gradients of training images: their teacher is asked in the step"):
        GradientStore(store).gradients(dataset, "train", CPU)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize("options", [{"timestep": 200}, {"timestep": [100, 400], "draws": 2}])
def test_targets_are_eq_8_of_the_images_trained_on(
    tmp_path, dataset, teacher, online_store, make_trainer, augmentation, options
):
    """The draws of a step made again by hand, in their order: classes, crops, noise."""
    store = online_store(**options)
    trainer = make_trainer(store, RunFolder(tmp_path / "run"), **{"train.augmentation": augmentation})
    trainer.batches.start(0, None)
    draws, train = generator("cpu", 5, "training draws"), dataset.splits["train"]
    order = torch.randperm(36, generator=generator("cpu", 5, "order", 0))
    for start in (0, 8):
        aligned = trainer.batches.take().aligned
        images = train.pixels(order[start : start + 8])
        classes = drawn_classes(8, 3, 2, draws)
        if augmentation == "crop_flip":
            images = CropsAndFlips(draw_crops_and_flips(8, draws), 8, 8)(images)
        levels = options["timestep"] if isinstance(options["timestep"], list) else [options["timestep"]]
        means = []
        for level in levels:
            parts = []
            for _ in range(options.get("draws", 1)):
                noise = torch.randn(8, 1, 8, 8, generator=draws)
                parts.append(score_based_gradients(teacher[1], images, timestep=level, noise=noise))
            means.append(sum(parts) / len(parts))
        if len(means) > 1:
            means = [mean / mean.flatten(2).norm(dim=2)[..., None, None, None] for mean in means]
        expected = (sum(means) / len(means))[torch.arange(8)[:, None], classes]
        assert torch.equal(aligned.images, images) and torch.equal(aligned.class_indices, classes)
        assert torch.allclose(aligned.targets, expected, rtol=1e-3, atol=1e-6)
        # the target is that of the augmented image: nothing of it was cut off
        assert aligned.mask is None and aligned.target_norm is None and aligned.weights is None


def test_a_killed_training_goes_on(tmp_path, online_store, make_trainer):
    store = online_store()
    whole = make_trainer(store, RunFolder(tmp_path / "whole"))
    expected = whole.run(tmp_path / "curves-whole")
    with pytest.raises(Killed):
        make_trainer(store, KilledFolder(tmp_path / "run", 1)).run(tmp_path / "curves")
    resumed = make_trainer(store, RunFolder(tmp_path / "run"))
    assert resumed.run(tmp_path / "curves") == expected
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name


def test_another_or_a_damaged_teacher_is_refused(tmp_path, dataset, teacher, online_store):
    store = online_store()
    flip(store / "teacher" / "weights.safetensors", 1000)
    with pytest.raises(WeightsError, match="is damaged"):
        open_online(GradientStore(store), dataset, CPU)
    other = online_store("other.zarr")
    saved = load_network(teacher[0], "diffusion")
    card = {name: value for name, value in saved.card.items() if name not in ("checksum", "sha256")}
    moved = {name: tensor * 1.1 for name, tensor in saved.tensors.items()}
    save_network(tmp_path / "moved", moved, card)
    for name in ("card.json", "weights.safetensors"):
        (other / "teacher" / name).write_bytes((tmp_path / "moved" / name).read_bytes())
    with pytest.raises(StoreError, match=r"made with another diffusion model"):
        open_online(GradientStore(other), dataset, CPU)

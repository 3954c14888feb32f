"""AutoAttack: the library called directly gives the same, its warnings are kept, a run goes on."""

import logging

import pytest
import torch
from pyautoattack.autoattack import AutoAttack
from torch import nn

from pag_core.errors import EvaluationRefused
from pag_core.evaluation import autoattack as autoattack_module
from pag_core.evaluation.attacks import AUTOATTACK_SEQUENCES
from pag_core.evaluation.autoattack import attack_name, attack_shard, headline, recount_size, run_autoattack
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.samples import Changed, labelled_images


def small_network(classes, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, classes)
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture
def few_queries(monkeypatch):
    """Square with 40 queries and APGD and FAB with few iterations, in every AutoAttack; for speed only."""
    make = AutoAttack.__init__

    def init(self, *arguments, **options):
        make(self, *arguments, **options)
        self.square.n_queries, self.fab.n_iter = 40, 5
        self.apgd.n_iter = self.apgd_targeted.n_iter = 6
        self.apgd.n_restarts = self.fab.n_restarts = min(2, self.apgd.n_restarts)

    monkeypatch.setattr(AutoAttack, "__init__", init)


OPTIONS = {"norm": "Linf", "radius": 0.1, "classes": 10, "version": "standard"}


@pytest.mark.parametrize(
    ("version", "norm", "radius"),
    [
        ("standard", "Linf", 0.06),
        ("standard", "L2", 0.15),
        ("plus", "L2", 0.15),
        pytest.param("standard", "L1", 1.5, marks=pytest.mark.slow),
    ],
)
def test_a_shard_equals_the_library_called_directly(few_queries, monkeypatch, version, norm, radius):
    model = small_network(10)
    count = 6 if norm == "L1" else 14
    images, labels = labelled_images(model, count, side=8)
    labels[3] = (labels[3] + 1) % 10
    library = AutoAttack(model, norm=norm, eps=radius, seed=77, device="cpu", version=version)
    expected, _ = library.run_standard_evaluation(images, labels, batch_size=6)
    stands = model(expected).argmax(1) == labels
    robust = int(stands.sum())
    returned = []
    run = AutoAttack.run_standard_evaluation
    monkeypatch.setattr(
        AutoAttack, "run_standard_evaluation", lambda *a, **o: returned.append(run(*a, **o)) or returned[-1]
    )
    options = {"norm": norm, "radius": radius, "classes": 10, "version": version, "batch_size": 6, "seed": 77}
    found = attack_shard(model, images, labels, **options)
    assert torch.equal(returned[0][0], expected)
    assert found["images"] == count and found["clean"] == "1110" + "1" * (count - 4)
    assert [mark == "1" for mark in found["robust"]] == stands.tolist()
    assert list(found["after"]) == list(AUTOATTACK_SEQUENCES[version])
    counts = [count - 1, *found["after"].values()]
    assert counts == sorted(counts, reverse=True) and counts[-1] == robust
    assert 0 < robust < count - 1, "a radius at which nothing or everything falls proves little"


@pytest.mark.parametrize(("version", "restarts"), [("standard", 1), ("plus", 5)])
def test_a_version_is_not_changed_from_ten_classes_on(version, restarts):
    for classes, targets in ((10, 9), (100, 9)):
        network = small_network(classes)
        attack = autoattack_module._attack(network, "Linf", 0.1, classes, version, 0, torch.device("cpu"))
        assert attack.attacks_to_run == list(AUTOATTACK_SEQUENCES[version])
        assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == targets
        assert attack.apgd.n_restarts == attack.fab.n_restarts == restarts
        assert attack.square.n_queries == 5000 and attack.apgd.n_iter == attack.fab.n_iter == 100


@pytest.mark.parametrize("version", ["standard", "plus"])
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_fewer_than_ten_classes_run_and_are_named(few_queries, version, classes):
    model = small_network(classes)
    images, labels = labelled_images(model, 8, side=8)
    options = {"norm": "Linf", "radius": 0.02, "classes": classes, "version": version, "batch_size": 8, "seed": 1}
    found = attack_shard(model, images, labels, **options)
    assert ("apgd-t" in found["after"]) == (classes > 3)
    assert ("apgd-dlr" in found["after"]) == (version == "plus" and classes > 2)
    assert found["clean"] == "1" * 8 and {"apgd-ce", "fab-t", "square"} <= set(found["after"])
    name = attack_name(version, classes)
    assert name.startswith(f"non-{version}: {classes - 1} target classes")
    assert ("without" in name) == (classes <= 3)
    assert attack_name(version, 10) == attack_name(version, 100) == version


def test_a_model_that_is_always_wrong_is_counted(few_queries):
    model = small_network(10)
    images, labels = labelled_images(model, 4, side=8)
    found = attack_shard(model, images, (labels + 1) % 10, **OPTIONS, batch_size=4, seed=1)
    assert found["clean"] == found["robust"] == "0000" and set(found["after"].values()) == {0}


def test_warnings_of_the_library_are_captured_and_its_logger_is_left_as_it_was(few_queries):
    logger = logging.getLogger("auto-attack")
    before = (logger.level, logger.propagate, list(logger.handlers))
    model = small_network(10)
    # logits so large that the cross-entropy saturates: many gradients are exactly zero, and AutoAttack warns
    images, labels = labelled_images(model, 6, side=8)
    confident = Changed(model, lambda z, x: torch.cat([z[:, :1] * 0 + 0.1, z[:, 1:] * 0 + 0.1], 1) + 0.0 * z).eval()
    found = attack_shard(confident, images, torch.zeros_like(labels), **OPTIONS, batch_size=6, seed=1)
    assert found["warnings"], "a model without gradients must be warned of"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def otherwise_beside_others(model, images, size):
    """These images get another class in batches of `size`, as from kernels that sum in another order."""

    def change(logits, batch):
        if len(batch) != size:
            return logits
        chosen = (batch[:, None] == images).flatten(2).all(2).any(1)
        return torch.where(chosen[:, None], logits.roll(1, dims=1), logits)

    return Changed(model, change)


FAINT = {"norm": "Linf", "radius": 0.002, "classes": 10, "version": "standard", "seed": 3}


@pytest.mark.parametrize("batch_size", [5, 20, 200])
def test_an_image_that_answers_otherwise_in_another_batch_is_not_robust(few_queries, batch_size):
    model = small_network(10)
    images, labels = labelled_images(model, 20, side=8)
    plain = attack_shard(model, images, labels, **FAINT, batch_size=batch_size)
    assert plain["robust"] == "1" * 20 and plain["disagreements"] == 0
    other = otherwise_beside_others(model, images[2:3], recount_size(20, batch_size))
    found = attack_shard(other, images, labels, **FAINT, batch_size=batch_size)
    assert (found["robust"], found["disagreements"]) == ("11" + "0" + "1" * 17, 1)
    assert found["after"] == plain["after"] and found["clean"] == plain["clean"]


@pytest.mark.parametrize("batch_size", [5, 20, 200])
def test_many_that_answer_otherwise_are_refused_with_a_remedy(few_queries, batch_size):
    model = small_network(10)
    images, labels = labelled_images(model, 20, side=8)
    other = otherwise_beside_others(model, images[7:9], recount_size(20, batch_size))
    words = rf"differ on 2 of 20 images, more than 1%.*batches of {min(batch_size, 20)} than of .*mixes the images"
    with pytest.raises(EvaluationRefused, match=words):
        attack_shard(other, images, labels, **FAINT, batch_size=batch_size)


def test_a_network_that_mixes_the_images_of_its_batch_is_found_at_the_default(few_queries, tmp_path, make_params):
    """As a batch-norm that takes the statistics of the batch; 30 images are one shard and one batch."""
    model = Changed(small_network(10), lambda logits, _: (logits - logits.mean(0)) / logits.std(0, correction=0)).eval()
    images, labels = labelled_images(model, 30, side=8)
    chosen = {"autoattack.radii": {"Linf": [0.0001]}, "autoattack.batch_size": 200, "autoattack.images_per_shard": 200}
    params = make_params(chosen).autoattack
    with pytest.raises(EvaluationRefused, match=r"differ on \d+ of 30 images, more than 1%.*mixes the images"):
        run_autoattack(model, images, labels, classes=10, params=params, seed=5, folder=RunFolder(tmp_path), who="test")


def batch_of_each_image(images, batch_size):
    """The number of images in the batch of each."""
    return [min(batch_size, images - number // batch_size * batch_size) for number in range(images)]


@pytest.mark.parametrize("images", range(1, 41))
def test_no_image_is_recounted_in_a_batch_of_the_same_size(images):
    for batch_size in range(1, 45):
        size = recount_size(images, batch_size)
        if images == 1:
            assert size is None
            continue
        first = batch_of_each_image(images, batch_size)

        def differs(other, first=first):
            return all(one != two for one, two in zip(first, batch_of_each_image(images, other), strict=True))

        assert differs(size), (images, batch_size, size)
        # no more memory than was granted, unless nothing else is left
        assert size < batch_size or not any(differs(other) for other in range(1, batch_size))


def test_the_network_sees_the_recount_in_batches_of_another_size(few_queries, monkeypatch):
    model = small_network(10)
    images, labels = labelled_images(model, 20, side=8)
    sizes = []
    seen = Changed(model, lambda logits, batch: sizes.append(len(batch)) or logits)
    run = AutoAttack.run_standard_evaluation
    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", lambda *a, **o: (run(*a, **o), sizes.clear())[0])
    attack_shard(seen, images, labels, **FAINT, batch_size=200)
    assert sizes == [20, 10, 10]


def test_a_shard_of_one_image_says_that_there_was_no_recount(few_queries, tmp_path, make_params):
    model = small_network(10)
    images, labels = labelled_images(model, 3, side=8)
    for shard, expected in ((1, None), (2, 0)):
        params = make_params({"autoattack.radii": {"Linf": [0.002]}, "autoattack.images_per_shard": shard}).autoattack
        options = {
            "classes": 10,
            "params": params,
            "seed": 5,
            "folder": RunFolder(tmp_path / str(shard)),
            "who": "test",
        }
        found = run_autoattack(model, images, labels, **options)
        assert found["disagreements"] == {"Linf 0.002": expected}
        assert found["recounted"] == {"Linf 0.002": 0 if expected is None else 2}
        assert found["Linf 0.002"] == 1


def beside_the_range(side):
    """Changes one pixel of one fallen image, within the radius of the test below: to less than 0 or more than 1."""

    def change(adversarial, images):
        changes = torch.zeros_like(images)
        fallen = int((adversarial != images).flatten(1).any(1).nonzero()[0])
        pixel = int((images[fallen] if side == 0 else -images[fallen]).argmin())
        beyond = side + (-0.02 if side == 0 else 0.02)
        assert abs(beyond - images[fallen].flatten()[pixel].item()) < 0.12
        changes[fallen].view(-1)[pixel] = beyond - adversarial[fallen].flatten()[pixel]
        return changes

    return change


def test_images_beyond_the_radius_or_the_range_are_refused(few_queries, monkeypatch):
    model = small_network(10)
    images, labels = labelled_images(model, 10, side=8)
    options = {"norm": "Linf", "radius": 0.12, "classes": 10, "version": "standard", "batch_size": 10, "seed": 1}
    run = AutoAttack.run_standard_evaluation

    def moved(by):
        def evaluate(self, x, y, **o):
            adversarial, predicted = run(self, x, y, **o)
            return adversarial + by(adversarial, x), predicted

        return evaluate

    robust = attack_shard(model, images, labels, **options)["robust"].count("1")
    assert 0 < robust < 10
    cases = {
        r"Linf 0\.1212, beyond the radius 0\.12": lambda a, x: torch.where((a - x).abs() > 0.1, (a - x) * 0.01, 0.0),
        "a recount differ": lambda a, x: torch.rand_like(a) - a,
        r"from -0\.02 to .* outside \[0, 1\]": beside_the_range(0),
        r"to 1\.02, outside \[0, 1\]": beside_the_range(1),
    }
    for words, by in cases.items():
        monkeypatch.setattr(AutoAttack, "run_standard_evaluation", moved(by))
        with pytest.raises(EvaluationRefused, match=words):
            attack_shard(model, images, labels, **options)


def test_run_autoattack_merges_shards_and_resumes(few_queries, tmp_path, make_params, monkeypatch):
    model = small_network(10)
    images, labels = labelled_images(model, 7, side=8)
    labels[0] = (labels[0] + 1) % 10
    params = make_params(
        {"autoattack.radii": {"Linf": ["2/255"], "L2": [0.2]}, "autoattack.images_per_shard": 3}
    ).autoattack
    options = {"classes": 10, "params": params, "seed": 5, "who": "test"}
    calls, attack = [], attack_shard

    def counted(classifier, part, *arguments, **settings):
        calls.append((settings["norm"], settings["radius"], len(part)))
        if len(calls) == limit:
            raise KeyboardInterrupt
        return attack(classifier, part, *arguments, **settings)

    monkeypatch.setattr(autoattack_module, "attack_shard", counted)
    limit = -1
    whole = run_autoattack(model, images, labels, folder=RunFolder(tmp_path / "whole"), **options)
    every, calls = calls, []
    assert [size for _, _, size in every] == [3, 3, 1] * 2
    assert whole["clean"] == 6 / 7
    assert whole.keys() == {
        "clean", "Linf 2/255", "L2 0.2", "verdicts", "per_attack", "disagreements", "recounted", "warnings"
    }  # fmt: skip
    assert whole["verdicts"].keys() == {"clean", "Linf 2/255", "L2 0.2"} and whole["verdicts"]["clean"] == "0111111"
    assert all(len(marks) == 7 and marks.count("1") / 7 == whole[name] for name, marks in whole["verdicts"].items())
    for name, after in whole["per_attack"].items():
        assert list(after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert after["square"] == whole[name] <= after["apgd-ce"] <= whole["clean"]
        assert (whole[name] * 7) == pytest.approx(round(whole[name] * 7), abs=1e-9)

    limit = 4
    with pytest.raises(KeyboardInterrupt):
        run_autoattack(model, images, labels, folder=RunFolder(tmp_path / "run"), **options)
    calls, limit = [], -1
    resumed = run_autoattack(model, images, labels, folder=RunFolder(tmp_path / "run"), **options)
    assert resumed == whole
    assert calls == every[3:]


def test_what_a_shard_is_given(tmp_path, make_params, monkeypatch):
    """Draws of its own, also beside others of its setting; and the parameters."""
    model = small_network(10)
    images, labels = labelled_images(model, 7, side=8)
    chosen = {
        "autoattack.radii": {"Linf": ["2/255"], "L2": [0.2]}, "autoattack.images_per_shard": 3,
        "autoattack.batch_size": 2, "autoattack.version": "plus",
    }  # fmt: skip
    given = []

    def shard(classifier, part, part_labels, **settings):
        given.append(settings)
        assert torch.equal(part_labels, labels[3 * ((len(given) - 1) % 3) :][: len(part)])
        marks = "1" * len(part)
        return {
            "images": len(part), "clean": marks, "robust": marks, "after": {"square": len(part)}, "disagreements": 0,
            "warnings": ["flat"],
        }  # fmt: skip

    monkeypatch.setattr(autoattack_module, "attack_shard", shard)
    params = make_params(chosen).autoattack
    options = {"classes": 10, "params": params, "seed": 5, "folder": RunFolder(tmp_path), "who": "test"}
    found = run_autoattack(model, images, labels, **options)
    assert len({settings.pop("seed") for settings in given}) == 6
    common = {"classes": 10, "version": "plus", "batch_size": 2}
    assert given == [
        {"norm": norm, "radius": radius, **common}
        for norm, radius in (("Linf", 2 / 255), ("L2", 0.2))
        for _ in range(3)
    ]
    assert found["warnings"] == ["L2 0.2: flat", "Linf 2/255: flat"] and found["recounted"] == {
        "L2 0.2": 7,
        "Linf 2/255": 7,
    }


def test_a_count_of_the_library_that_its_images_do_not_bear_out_is_a_disagreement(few_queries, monkeypatch):
    model = small_network(10)
    images, labels = labelled_images(model, 20, side=8)
    run = AutoAttack.run_standard_evaluation

    def counted_otherwise(share):
        def evaluate(self, *arguments, **options):
            found = run(self, *arguments, **options)
            logging.getLogger("auto-attack").info(f"robust accuracy after SQUARE: {share}% (total time 0 s)")
            return found

        return evaluate

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", counted_otherwise("95.00"))
    found = attack_shard(model, images, labels, **FAINT, batch_size=20)
    assert found["disagreements"] == 1 and found["after"]["square"] == 19
    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", counted_otherwise("80.00"))
    with pytest.raises(EvaluationRefused, match="differ on 4 of 20 images"):
        attack_shard(model, images, labels, **FAINT, batch_size=20)


@pytest.mark.parametrize(("norm", "length"), [("L1", 7), ("L2", 5), ("Linf", 4)])
def test_a_perturbation_is_measured_in_its_norm(norm, length):
    perturbation = torch.tensor([[0.0, 0.0], [3.0, -4.0]]).reshape(2, 1, 1, 2)
    autoattack_module._require_within(perturbation, norm, length)
    with pytest.raises(
        EvaluationRefused, match=rf"perturbation of {norm} {length}, beyond the radius {length - 0.01:g}"
    ):
        autoattack_module._require_within(perturbation, norm, length - 0.01)


def test_the_headline_has_the_accuracies_of_both():
    found = {"verdicts": {}, "per_attack": {}, "disagreements": {}, "recounted": {}, "warnings": []}
    details = {
        "attack": "standard", "images": 9,
        "model": {"clean": 0.9, "L2 1": 0.5, **found}, "baseline": {"clean": 0.8, "L2 1": 0.25, **found},
    }  # fmt: skip
    assert headline(details) == {
        "attack": "standard", "images": 9,
        "model": {"clean": 0.9, "L2 1": 0.5}, "baseline": {"clean": 0.8, "L2 1": 0.25},
    }  # fmt: skip

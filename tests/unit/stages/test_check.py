"""What does not fit the data is refused before anything runs long, all of it at once, and only what will run is looked at."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from pag_core.classifiers.building import save_classifier
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.paths import CHECKED, dataset_path
from tests.fixtures.samples import ROOT, changed, make_labelled, write_prepared

CLASSES = 3
# of each class in the training, validation and test split
PER_CLASS = (43, 8, 9)
# what fits these images
FITTING = {
    "device": "cpu", "processes": None, "source": "sbg", "lambda": 1.0, "arch": "small_resnet", "train.batch_size": 64,
    "validation.images": 24, "autoattack.images": 27, "foolbox.images": 27, "masking.images": 27,
    "pag_score.images": 27, "pag_score.judged_images": 27, "gradient_store.held_out_images": 27,
}  # fmt: skip


@pytest.fixture
def check(monkeypatch):
    """The stage as a module."""
    spec = importlib.util.spec_from_file_location("check", ROOT / "stages/check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """`prepared(shape)`: the folder that the stage runs in, with a dataset of images of that shape."""
    monkeypatch.chdir(tmp_path)

    def write(shape=(1, 8, 8), per_class=PER_CLASS):
        made = [make_labelled(CLASSES, count, shape, seed) for seed, count in enumerate(per_class)]
        splits = dict(zip(("train", "validation", "test"), made, strict=True))
        write_prepared(dataset_path("digits"), ("ant", "bee", "cat"), splits, {})
        return splits

    return write


@pytest.fixture
def refusal(check, plain_params, tmp_path, capsys):
    """`refusal(changes)`: the lines with which the stage refuses parameters; none where it writes its file."""

    def run(changes, base=FITTING):
        (tmp_path / "params.yaml").write_text(
            written_yaml(changed(plain_params, {**base, **changes})), encoding="utf-8"
        )
        CHECKED.unlink(missing_ok=True)
        try:
            check.main()
        except SystemExit as ended:
            assert ended.code == 1 and not CHECKED.exists()
            head, *lines = capsys.readouterr().err.strip().splitlines()
            assert "ParamsError" in head and "params.yaml" in head, head
            return [line.strip() for line in lines]
        assert CHECKED.exists()
        return []

    return run


def test_what_fits_leaves_the_same_file_whatever_it_is(refusal, prepared):
    prepared()
    assert refusal({}) == []
    first = CHECKED.read_bytes()
    for changes in ({"source": "cm"}, {"train.batch_size": 8}, {"masking.images": 1}, {"lambda": 0.0, "seed": 1}):
        assert refusal(changes) == [] and CHECKED.read_bytes() == first


def test_all_that_does_not_fit_is_named_at_once(refusal, prepared):
    """A folder of 3 x 60 images that are not square, at the defaults of the repository: these came one by one."""
    prepared((3, 12, 10))
    defaults = {
        "validation.images": 150, "autoattack.images": 200, "foolbox.images": 50, "masking.images": 100,
        "pag_score.images": 200, "pag_score.judged_images": 20, "gradient_store.held_out_images": 200,
    }  # fmt: skip
    found = refusal({**defaults, "arch": "vit"})
    expected = [
        (r"validation\.images is 150, .* 24 images; set it to at most 24",),
        (r"autoattack\.images is 200, .* 27 images; set it to at most 27",),
        (r"foolbox\.images is 50, .* set it to at most 27",),
        (r"masking\.images is 100, .* set it to at most 27",),
        (r"pag_score\.images is 200, .* set it to at most 27",),
        (r"takes square images, .* 10x12 pixels .*; set prepare\.image_size, .*, or another source",),
        (r"classifier\.patch_size is null, .*12x10 pixels: choose one of 1, 2",),
    ]
    assert len(found) == len(expected), found
    for line, (words,) in zip(found, expected, strict=True):
        assert re.search(words, line), line


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((1, 8, 8), {"validation.images": 25}, r"validation\.images is 25, .* at most 24"),
        ((1, 8, 8), {"pag_score.judged_images": 28}, r"pag_score\.judged_images is 28, .* at most 27"),
        ((1, 8, 8), {"pag_score.judge_images": 1}, r"pag_score\.judge_images is 1, .* set it higher"),
        ((1, 8, 8), {"gradient_store.held_out_images": 26}, r"pag_score\.images is 27, .*held_out_images test images, 26"),
        ((1, 8, 8), {"gradient_store.classes_per_image": 4}, r"classes_per_image is 4, the dataset has 3 classes"),
        ((1, 8, 8), {"objective.classes_per_step": 4}, r"classes_per_step is 4, the dataset has 3 classes; .* at most 3"),
        (
            (1, 8, 8),
            {"objective.classes_per_step": 3, "gradient_store.classes_per_image": 2},
            r"classes_per_step is 3, the store keeps 2 classes .*; set it to at most 2",
        ),
        ((1, 9, 9), {}, r"channel_multipliers \[1, 1\] halve the image 1 times, .*9x9 pixels"),
        ((1, 8, 8), {"diffusion.attention_resolutions": [16]}, r"names 16 pixels, .* works at 8, 4 pixels"),
        ((1, 8, 8), {"diffusion.attention_heads": 5}, r"attention_heads is 5, which does not divide the 32 channels"),
        ((1, 8, 8), {"sbg.timestep": [200, 300]}, r"sbg\.timestep is 300, data/diffusion is trained for timesteps 150 to 250"),
        ((1, 8, 8), {"train.precision": "tf32"}, r"train\.precision tf32 is a mode of NVIDIA GPUs"),
        ((1, 8, 8), {"diffusion.precision": "tf32"}, r"diffusion\.precision tf32 is a mode of NVIDIA GPUs"),
        ((1, 8, 8), {"sbg.precision": "tf32"}, r"sbg\.precision tf32 is a mode of NVIDIA GPUs"),
        ((1, 8, 8), {"arch": "vgg11"}, r"five poolings need images of 32 .*8x8"),
        ((1, 8, 8), {"arch": "vit", "classifier.patch_size": 3}, r"patch_size is 3; .*8x8 pixels: choose one of 1, 2, 4, 8"),
        ((1, 8, 8), {"arch": "vit", "classifier.width": 100}, r"width is 100; the 12 heads of vit"),
        ((1, 8, 8), {"classifier.patch_size": 2}, r"patch_size is 2; small_resnet has no option patch_size"),
        ((1, 8, 8), {"classifier.depth": 5}, r"depth is 5; .* 8x8 pixels .* after 3 of them: set it to at most 4"),
        ((1, 8, 6), {"source": "cm", "classifier.depth": 5}, r"depth is 5; .* 8x6 pixels .*at most 4"),
        ((1, 8, 8), {"arch": "resnet18", "train.batch_size": 16}, r"batch_size is 16, .* of 129 .* set it to 15 or 17"),
        ((1, 8, 8), {"arch": "resnet18", "train.batch_size": 67, "processes": 64}, r"batch_size is 67, .*64 processes"),
        (
            (1, 8, 8), {"source": "sbg", "diffusion.compile": True, "processes": 2},
            r"diffusion\.compile works in one process only",
        ),
        ((1, 8, 8), {"train.compile": True, "processes": 2}, r"train\.compile works in one process only"),
        ((1, 8, 8), {"control": "other_image", "lambda": 0.0}, r"control is other_image, .*lambda 0"),
        ((1, 8, 8), {"control": "other_image", "source": "sbg_online"}, r"neither with source sbg_online"),
    ],
)  # fmt: skip
def test_each_misfit_by_itself(refusal, prepared, shape, changes, words):
    prepared(shape)
    (line,) = refusal(changes)
    assert re.search(words, line), line


def test_an_imported_classifier_is_there_and_fits(refusal, prepared, make_classifier):
    prepared()
    given = {"classifier_checkpoint": "data/pretrained_classifier"}
    (line,) = refusal(given)
    assert "classifier_checkpoint is data/pretrained_classifier, which is not there" in line
    assert "python -m pag_core.exchange.import_classifier" in line
    dataset = read_dataset(dataset_path("digits"))
    options = {"width": 4, "activation": None}
    for names, found in ((dataset.class_names, 0), (("ant", "bee"), 1)):
        of = Dataset(names, "another", dataset.splits)
        save_classifier(
            Path("data/pretrained_classifier"), make_classifier(classes=len(names)), arch="small_resnet", options=options,
            dataset=of, provenance={}, imported={"file": "some.pt"},
        )  # fmt: skip
        # neither a teacher nor a method of the file is looked at
        changes = {
            **given,
            "sbg.timestep": 999,
            "method": "at",
            "train.compile": False,
            "objective.classes_per_step": 99,
        }
        assert len(lines := refusal(changes)) == found, lines


def test_a_classifier_of_this_pipeline_is_none_to_import(refusal, prepared, make_classifier):
    prepared()
    save_classifier(
        Path("data/other"), make_classifier(), arch="small_resnet", options={"width": 4, "activation": None},
        dataset=read_dataset(dataset_path("digits")), provenance={},
    )  # fmt: skip
    (line,) = refusal({"classifier_checkpoint": "data/other"})
    assert (
        "data/other holds a classifier that this pipeline trained" in line and "import its weights.safetensors" in line
    )


def test_a_class_of_one_training_image_has_no_neighbor(refusal, prepared):
    splits = prepared()
    rows = (splits["train"].labels != 1).nonzero()[0].tolist()
    only = [*rows, int((splits["train"].labels == 1).nonzero()[0][0])]
    train = LabelledImages(splits["train"].images[only], splits["train"].labels[only])
    write_prepared(dataset_path("digits"), ("ant", "bee", "cat"), {**splits, "train": train}, {})
    assert refusal({"source": "cm"}) == []
    for changes in ({"source": "nn"}, {"source": "cm", "pag_score.reference": "nn"}):
        (line,) = refusal(changes)
        assert "nn needs two training images of each class, and there is one of 'bee'" in line


def test_a_remedy_that_names_a_number_fits(refusal, prepared):
    """All that were named are set to what the message offers, until nothing is left; each takes one round."""
    prepared()
    changes = {
        "arch": "resnet18", "train.batch_size": 16, "validation.images": 99, "autoattack.images": 99,
        "masking.images": 99, "objective.classes_per_step": 9, "gradient_store.classes_per_image": 9,
    }  # fmt: skip
    found = refusal(changes)
    assert len(found) == 6
    for line in found:
        key, number = re.match(r"([\w.]+) is ", line)[1], re.search(r"set it to (?:at most )?(\d+)?", line)[1]
        changes[key] = CLASSES if number is None else int(number)
    assert refusal(changes) == []


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((3, 12, 10), {"source": "cm"}),  # no diffusion model is trained for class means
        ((1, 9, 9), {"source": "nn", "gradient_store.classes_per_image": 9}),  # nor are classes kept
        ((1, 8, 8), {"source": "cm", "gradient_store.classes_per_image": 2, "objective.classes_per_step": 3}),
        ((1, 8, 8), {"source": "none", "objective.classes_per_step": 9}),  # there is no alignment term
        ((1, 8, 8), {"lambda": 0.0, "objective.classes_per_step": 9}),
        ((1, 8, 8), {"source": "cm", "sbg.timestep": 999}),
        ((1, 8, 8), {"diffusion_checkpoint": "elsewhere", "diffusion.channel_multipliers": [1] * 9}),
        ((1, 8, 8), {"train.batch_size": 16}),  # a network without batch-norm takes one image
        ((3, 16, 16), {"arch": "resnet18", "train.batch_size": 16}),  # so does one with two by two pixels left
    ],
)
def test_what_will_not_run_is_not_looked_at(refusal, prepared, shape, changes):
    prepared(shape)
    assert refusal(changes) == []


def test_only_stages_that_are_wanted_are_looked_at(refusal, prepared):
    prepared((1, 12, 10))
    asked = {"source": "cm", "pag_score.reference": "sbg"}
    asked |= {f"{name}.images": 999 for name in ("autoattack", "foolbox", "masking", "pag_score")}
    asked |= {"validation.images": 999, "processes": 2, "train.compile": True}
    for wanted, count in (
        ([], 0),
        (["train", "validation"], 2),
        (["validation", "baseline"], 2),
        (["validation", "baseline", "autoattack"], 3),
    ):
        found = refusal({**asked, "check.stages": wanted})
        assert len(found) == count, found
        assert "autoattack" not in wanted or any("autoattack.images" in line for line in found)
    assert {line.split(" is ")[0] for line in refusal(asked)} >= {
        "foolbox.images",
        "masking.images",
        "pag_score.images",
    }

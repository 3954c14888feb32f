"""What `auto` stands for in the counts of params.yaml: the number of its comment, or what a dataset has."""

import re

import pytest

from pag_core.datasets.counts import MOST, automatic_counts, count
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ParamsError
from pag_core.pipeline.stage import OpenStage
from tests.fixtures.samples import ROOT, make_labelled, write_prepared

AUTO = dict.fromkeys(MOST, "auto")


@pytest.fixture
def prepared(tmp_path):
    """`prepared(classes, train, validation, test)`: a dataset of so many images of each class."""

    def write(classes, *per_class):
        parts = [make_labelled(classes, number, (1, 2, 2), seed) for seed, number in enumerate(per_class)]
        names = tuple(map(str, range(classes)))
        write_prepared(tmp_path / "d.zarr", names, dict(zip(("train", "validation", "test"), parts, strict=True)), {})
        return read_dataset(tmp_path / "d.zarr")

    return write


def test_the_comment_of_each_key_has_its_number():
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    said = re.findall(r"^(\w+):|^  (\w+): auto +# .*?auto: (\d+)", text, re.MULTILINE)
    sections = [name for name, *_ in said]
    found = {}
    for position, (_, key, number) in enumerate(said):
        if key:
            section = next(name for name in reversed(sections[:position]) if name)
            found[f"{section}.{key}"] = int(number)
    assert found == MOST


def test_a_large_dataset_gives_the_numbers_of_the_comments(prepared, make_params):
    assert automatic_counts(make_params(AUTO), prepared(4, 600, 60, 60)) == MOST


def test_a_small_one_gives_what_it_has(prepared, make_params):
    assert automatic_counts(make_params(AUTO), prepared(2, 5, 4, 3)) == {
        "objective.classes_per_step": 2, "validation.images": 8, "autoattack.images": 6, "foolbox.images": 6,
        "masking.images": 6, "pag_score.images": 6, "pag_score.judged_images": 6, "pag_score.judge_images": 2000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key", "number"),
    [
        ({"gradient_store.held_out_images": 5}, "pag_score.images", 5),
        ({"source": "sbg", "gradient_store.classes_per_image": 2}, "objective.classes_per_step", 2),
        ({"source": "cm", "gradient_store.classes_per_image": 2}, "objective.classes_per_step", 3),
    ],
)
def test_a_number_of_another_key_bounds_it(prepared, make_params, changes, key, number):
    assert automatic_counts(make_params({**AUTO, **changes}), prepared(4, 5, 4, 3))[key] == number


def test_a_judge_knows_every_class(prepared, make_params):
    """The only image of the last class is number 2,500."""
    dataset = prepared(2, 1250, 1, 1)
    dataset.splits["train"].labels[:] = 0
    dataset.splits["train"].labels[2499] = 1
    assert automatic_counts(make_params(AUTO), dataset)["pag_score.judge_images"] == 2500


def test_a_stage_has_numbers_says_them_and_records_them(prepared, make_params, capsys):
    opened = OpenStage("validation", ("dataset", "seed", "validation"))
    opened.all_params = make_params({**AUTO, "autoattack.images": 4})
    params = count(opened, prepared(2, 5, 4, 3))
    assert capsys.readouterr().out == "auto: validation.images 8\n"
    assert params.validation.images == 8 == opened.recorded["validation"]["images"]
    whole = opened.all_params
    assert (whole.autoattack.images, whole.foolbox.images, whole.objective.classes_per_step) == (4, 6, 2)
    # nothing else has changed
    given = make_params({**AUTO, "autoattack.images": 4})
    numbers = automatic_counts(given, prepared(2, 5, 4, 3))
    assert whole == make_params({**numbers, "autoattack.images": 4})


@pytest.mark.parametrize("key", MOST)
def test_other_words_are_refused(make_params, key):
    with pytest.raises(ParamsError, match=rf"{key}.*: 'automatic' is refused|{key}.*'automatic' is not one of"):
        make_params({key: "automatic"})

"""Descriptions of experiments: what they read as, what they refuse, and what DVC is told."""

import pytest
import typer

from experiments import figure
from experiments.description.experiment import base_params, read_experiment
from experiments.runs.overrides import overrides
from experiments.table import markdown
from pag_core.errors import ParamsError
from pag_core.params.reading import parse_params, plain_params
from pag_core.params.yaml_text import written_yaml
from tests.fixtures.samples import ROOT
from tests.fixtures.small_experiment import DESCRIPTION


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("train.epoch=3", "no such parameter"),
        ("cm:lamda=1", "no such parameter"),
        ("lambda", "no such parameter"),
        ("pet:lambda=1", "the classifier pet is not one of: cm, oi$"),
        ("cm-seed3407:lambda=1", "the classifier cm-seed3407 is not one of: cm, oi$"),
        ("train.epochs=[1", r"train\.epochs=\[1: the value is not YAML"),
        ("train.epochs=2026-13-01", "the value is not YAML"),
        ("autoattack.radii={L2: [1], L2: [2]}", "the value is not YAML: the key 'L2' is given twice"),
    ],
)
def test_a_change_of_no_parameter_is_refused(tmp_path, wrong, words):
    (tmp_path / "tiny.yaml").write_text(written_yaml(DESCRIPTION), encoding="utf-8")
    with pytest.raises(typer.BadParameter, match=words):
        read_experiment(tmp_path / "tiny.yaml", "tiny", [wrong])


def read(tmp_path, text, size="full"):
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    return read_experiment(file, size, [])


SIZES = "sizes: {full: {}}\n"
MODELS = "classifiers: {cm: {source: cm}}\n"
STAGES = "stages: [train]\n"
WHOLE = STAGES + SIZES + MODELS
LIKE = STAGES + MODELS + "sizes: {small: {}, full: {like: "
TABLE_5 = ", ".join(f"table_5/{network}" for network in ("vgg16/vanilla", "vgg16/sbg", "vgg13/vanilla"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold keys and values"),
        ("- stages\n", "must hold keys and values, not list"),
        ("stages: [train\n", "is not YAML"),
        (WHOLE + STAGES, "is not YAML: the key 'stages' is given twice"),
        (STAGES + MODELS, "sizes is missing"),
        (SIZES + MODELS, "stages is missing, and the size full has none"),
        (STAGES + SIZES, "classifiers is missing, and the size full has none"),
        (STAGES + MODELS + "sizes: 3\n", "sizes: 3 is refused: .*dictionary"),
        (SIZES + MODELS + "stages: train\n", "stages: 'train' is refused: .*list"),
        (SIZES + MODELS + "stages: []\n", r"stages: \[\] is refused: .*at least 1"),
        (STAGES + SIZES + "classifiers: {}\n", "classifiers: {} is refused: .*at least 1"),
        (STAGES + SIZES + "classifiers: {true: {}}\n", "classifiers: .*True is not a name, .*in quotes"),
        (STAGES + SIZES + "classifiers: {1e-1: {}}\n", "classifiers: .*0.1 is not a name, .*in quotes"),
        (WHOLE + "params: [1]\n", r"params: \[1\] is refused: .*dictionary"),
        (WHOLE + "needs_images: 1\n", "needs_images: 1 is refused: .*boolean"),
        (WHOLE + "seeds: []\n", r"seeds: \[\] is refused: .*at least 1"),
        (WHOLE + "seeds: 3407\n", "seeds: 3407 is refused: .*list"),
        (WHOLE + "seeds: [1, 2, 1]\n", r"seeds: \[1, 2, 1\] is refused: a seed is given twice"),
        (WHOLE + "seeds: [1, one]\n", "seeds: 1: 'one' is refused: .*integer"),
        (STAGES + MODELS + "sizes: {full: {seeds: 3407}}\n", "sizes: full: seeds: 3407 is refused: .*list"),
        (WHOLE + "rows: {a: }\n", "rows: a: of is missing"),
        (WHOLE + "rows: {a: {baseline: true}}\n", "rows: a: of is missing"),
        (WHOLE + "rows: {a: {of: cm, pubished: x}}\n", "rows: a: pubished is not one of: of, baseline, published"),
        (WHOLE + "rows: {a: {of: cm, baseline: 'no'}}\n", "rows: a: baseline: 'no' is refused: .*boolean"),
        (WHOLE + "rows: {a: {of: cm, published: table_9/x}}\n", "the row a .*table_9/x.* one of: table_1/resnet18/vanilla,"),
        (WHOLE + "rows: {a: {of: cm, published: table_5/vgg16}}\n", f"table_5/vgg16, which is not one of: {TABLE_5},"),
        (LIKE + "other.yaml}}\n", "sizes: full: like: 'other.yaml' is refused: .* is FILE:SIZE"),
        (LIKE + "'other.yaml:full'}}\n", "sizes: full: like: other.yaml:full: there is no description .*other.yaml"),
        (LIKE + "'study.yaml:huge'}}\n", "sizes: full: like: study.yaml:huge: huge is not one of: small, full"),
        (LIKE + "'study.yaml:full'}}\n", "sizes: full: like: study.yaml:full leads back to itself"),
    ],
)  # fmt: skip
def test_a_malformed_description_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(typer.BadParameter, match=words) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "study.yaml") in str(caught.value)


def test_sizes_of_two_files_that_are_like_each_other_are_refused(tmp_path):
    (tmp_path / "other.yaml").write_text(STAGES + MODELS + "sizes: {full: {like: 'study.yaml:full'}}\n")
    with pytest.raises(typer.BadParameter, match=r"other\.yaml: sizes: full: like: study\.yaml:full leads back"):
        read(tmp_path, LIKE + "'other.yaml:full'}}\n")


def test_a_section_without_a_value_is_empty(tmp_path):
    experiment = read(tmp_path, STAGES + "sizes: {full: }\nclassifiers: {a: }\nparams:\nrows:\n")
    assert experiment.params == {"a": base_params()} and [row.label for row in experiment.rows] == ["a"]


def test_a_number_in_quotes_is_a_name(tmp_path):
    """Of classifiers and rows."""
    models = "classifiers: {'0.5': {lambda: 0.5}, '1e-1': {lambda: 1e-1}}\n"
    experiment = read(tmp_path, STAGES + SIZES + models)
    assert list(experiment.params) == ["0.5", "1e-1"] and experiment.params["1e-1"]["lambda"] == 0.1
    rows = read(tmp_path, STAGES + SIZES + models + "rows: {'2': {of: '1e-1'}}\n")
    assert [(row.label, row.classifier) for row in rows.rows] == [("2", "1e-1")]
    assert "| 2 | not run |" in markdown(rows, {})


@pytest.mark.parametrize("stage", ["prepare", "masking", "pag_score", "figures"])
def test_a_table_without_attacks_is_of_validation_whatever_the_stages(tmp_path, stage):
    experiment = read(tmp_path, f"stages: [{stage}]\n" + SIZES + MODELS)
    assert experiment.stages == ("validation", stage)


def test_a_radius_of_another_norm_takes_the_place_of_the_first(tmp_path):
    layer = "params: {figures: {targeted_radius: {Linf: 0.3}}, pag_score: {judged_radius: {Linf: 0.1}}}\n"
    params = read(tmp_path, WHOLE + layer).params["cm"]
    assert params["figures"] == {**base_params()["figures"], "targeted_radius": {"Linf": 0.3}}
    assert params["pag_score"] == {**base_params()["pag_score"], "judged_radius": {"Linf": 0.1}}


def test_published_numbers_are_those_of_the_settings(tmp_path):
    rows = "rows: {vanilla: {of: cm, baseline: true}, cm: {of: cm, published: table_5/vgg16/sbg}}\n"
    for stages in ("[autoattack]", "[autoattack, foolbox]"):
        text = f"stages: {stages}\n" + SIZES + MODELS + rows
        assert read(tmp_path, text + "settings: [clean, L2 0.5]\n").settings == ("clean", "L2 0.5")
        with pytest.raises(typer.BadParameter, match=r"there are 1 \(clean\), and the row cm has 2 numbers"):
            read(tmp_path, text + "settings: [clean]\n")
        with pytest.raises(typer.BadParameter, match=r"settings are the columns of published numbers.* there are 0"):
            read(tmp_path, text)
    assert read(tmp_path, "stages: [foolbox]\nsettings: [clean]\n" + SIZES + MODELS + rows).rows[1].published


def test_a_size_that_is_made_for_a_folder_of_images_asks_for_it(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"table_2 \(mini\) takes a folder of images"):
        figure.main("correlation", [ROOT / "experiments/tables/table_2.yaml"], tmp_path / "drawn", size="mini")
    experiment = read_experiment(ROOT / "experiments/tables/table_2.yaml", "mini", [], tmp_path)
    for params in experiment.params.values():
        assert (params["dataset"], params["image_folder"]) == ("image_folder", str(tmp_path))


def test_a_wrong_value_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "tiny.yaml").write_text(written_yaml(DESCRIPTION), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"tiny\.yaml \(tiny, cm\).*\n.*train\.epochs: 0 is refused"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", ["cm:train.epochs=0"])
    with pytest.raises(typer.BadParameter, match="huge is not one of: tiny"):
        read_experiment(tmp_path / "tiny.yaml", "huge", [])


VALUES = [
    None,
    True,
    3,
    1e-4,
    1e-5,
    0.5,
    "8/255",
    "a b",
    "it's",
    "a\\b",
    "",
    [],
    [1, "8/255"],
    {"factor": 0.667, "epochs": 50},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_overrides_are_read_as_they_were_meant(tmp_path, value):
    """By DVC's own reading of `--set-param`, in a file that holds another value."""
    from dvc.utils.hydra import apply_overrides

    base = {"section": {"key": 1, "other": 2, "gone": 3}, "plain": 5}
    file = tmp_path / "params.yaml"
    file.write_text(written_yaml(base))
    wanted = {"section": {"key": value, "other": 2}, "plain": 5, "new": value}
    apply_overrides(file, overrides(wanted, base))
    assert plain_params(file.read_bytes(), "params.yaml") == wanted


@pytest.mark.parametrize("size", ["full", "half_hour", "small"])
def test_the_committed_experiment_is_valid(size):
    experiment = read_experiment(ROOT / "experiments/cifar10_resnet18.yaml", size, [])
    assert experiment.params.keys() == {"cm", "sbg"} and [row.label for row in experiment.rows] == [
        "vanilla",
        "cm",
        "sbg",
    ]
    assert experiment.rows[2].published == (78.56, 55.39, 23.97)
    for name, params in experiment.params.items():
        # heuristic targets aligned with the log-probability cost the clean accuracy
        assert parse_params(params).objective.output == {"cm": "logit", "sbg": "log_softmax"}[name]


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_rivals_on_digits_are_valid(size):
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", size, ["sbg_trades:lambda=0.5"])
    assert len(experiment.params) == 3 * len(experiment.runs) == 42
    assert {experiment.params[run]["seed"] for run in experiment.runs["trades"]} == {3407, 3408, 3409}
    assert {experiment.params[run]["lambda"] for run in experiment.runs["sbg_trades"]} == {0.5}
    assert experiment.params["at_linf-seed3407"]["at"]["norm"] == "Linf"


@pytest.mark.parametrize(("key", "value", "words"), [("source", "sgb", "did you mean 'sbg'"), ("lamda", 1, "'lambda'")])
def test_a_mistake_in_params_yaml_is_refused_before_a_description_is_laid_over_it(
    plain_params, tmp_path, monkeypatch, key, value, words
):
    """Also of a value that the description has otherwise; the message names the file that it is in."""
    (tmp_path / "params.yaml").write_text(written_yaml({**plain_params, key: value}), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(written_yaml(DESCRIPTION), encoding="utf-8")
    monkeypatch.setattr("experiments.description.experiment.BASE", tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=rf"^params\.yaml:\n  {key}.*{words}"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", [])

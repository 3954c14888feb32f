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


GRID = STAGES + SIZES + "grid: "


def test_a_grid_is_every_combination_named_by_its_values(tmp_path):
    """In the order of its keys, the last one fastest; with classifiers each of them at each point, and with each seed."""
    grid = "{lambda: [0.5, 2], control: [null, other_image], at.radius: [8/255]}\n"
    found = read(tmp_path, GRID + grid)
    assert [(name, plain["lambda"], plain["control"]) for name, plain in found.params.items()] == [
        ("lambda-0.5-control-null-radius-8_255", 0.5, None),
        ("lambda-0.5-control-other_image-radius-8_255", 0.5, "other_image"),
        ("lambda-2-control-null-radius-8_255", 2, None),
        ("lambda-2-control-other_image-radius-8_255", 2, "other_image"),
    ]
    assert all(plain["at"] == {**base_params()["at"], "radius": "8/255"} for plain in found.params.values())
    assert found.sweep and [row.label for row in found.rows] == list(found.params)
    both = "{cm: {source: cm, at: {steps: 3}}, nn: {source: nn}}\nseeds: [1, 2]\ngrid: {at.radius: [1, 2]}\n"
    found = read(tmp_path, STAGES + SIZES + "classifiers: " + both)
    assert found.runs == {
        name: [f"{name}-seed1", f"{name}-seed2"]
        for name in ("cm-radius-1", "cm-radius-2", "nn-radius-1", "nn-radius-2")
    }
    one, other = found.params["cm-radius-2-seed2"], found.params["nn-radius-2-seed2"]
    assert (one["at"]["radius"], one["at"]["steps"], one["seed"], one["source"]) == (2, 3, 2, "cm")
    assert (other["at"]["radius"], other["at"]["steps"]) == (2, base_params()["at"]["steps"])
    assert not read(tmp_path, WHOLE).sweep and not read(tmp_path, WHOLE + "grid:\n").sweep


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("[lambda]", r"grid: \['lambda'\] is refused: .*dictionary"),
        ("{lambda: 1}", r"grid: lambda: 1 is refused: the values of a grid are a list, as \[0.5, 1\]"),
        ("{lambda: []}", r"grid: lambda: \[\] is refused: the values of a grid are a list"),
        ("{train: {epochs: [1]}}", "grid: train: .*a key in a section is SECTION.KEY, as train.epochs"),
        ("{lambda: [1, 2, 1.0]}", r"grid: lambda: \[1, 2, 1.0\] is refused: 1.0 is given twice; leave one out"),
        ("{autoattack.radii: [{L2: [1]}]}", r"grid: autoattack.radii: .*{'L2': \[1\]} makes no name"),
        ("{seed: [1, 2]}", r"grid: seed: .*write seeds: \[1, 2\]"),
        ("{at.radius: [1], at: [2]}", "grid: at.radius is within at, which is in the grid too"),
        ("{image_folder: [a/b, a_b]}", "grid: the classifier of image_folder: 'a_b' is called image_folder-a_b, as another is"),
    ],
)  # fmt: skip
def test_a_malformed_grid_is_refused_by_key_and_value(tmp_path, grid, words):
    with pytest.raises(typer.BadParameter, match=words) as caught:
        read(tmp_path, GRID + grid)
    assert str(tmp_path / "study.yaml") in str(caught.value)


def test_what_a_grid_gives_is_nowhere_else(tmp_path):
    """Neither in a classifier nor in the command; and a key or value that there is not is refused as elsewhere."""
    with pytest.raises(
        typer.BadParameter, match="grid: source is 'cm' in the classifier cm already; leave it out there"
    ):
        read(tmp_path, WHOLE + "grid: {source: [cm, nn]}")
    (tmp_path / "study.yaml").write_text(GRID + "{at.radius: [1, 2]}", encoding="utf-8")
    for change in ("at.radius=3", "radius-1:at.radius=3", "at={}"):
        with pytest.raises(typer.BadParameter, match=r"has a grid of at.radius, 1, 2; change it there"):
            read_experiment(tmp_path / "study.yaml", "full", [change])
    changed = read_experiment(tmp_path / "study.yaml", "full", ["radius-1:at.steps=3"])
    assert [plain["at"]["steps"] for plain in changed.params.values()] == [3, base_params()["at"]["steps"]]
    with pytest.raises(
        ParamsError, match=r"study.yaml \(full, lamda-1\):\n  lamda is an unknown key.*did you mean 'lambda'"
    ):
        read(tmp_path, GRID + "{lamda: [1]}")
    with pytest.raises(ParamsError, match=r"study.yaml \(full, source-sgb\):\n  source: 'sgb' is not one of.*'sbg'"):
        read(tmp_path, GRID + "{source: [cm, sgb]}")


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


@pytest.mark.parametrize("size", ["full", "half_hour", "ten_minutes", "small"])
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

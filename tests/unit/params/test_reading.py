"""params.yaml: what is refused, and that the refusal names the place, the value and what is allowed."""

import copy
import shutil
from typing import get_args

import pydantic
import pytest
from dvc.utils.hydra import apply_overrides

from pag_core.errors import ParamsError
from pag_core.params.__main__ import main as check_file
from pag_core.params.radii import radius_value
from pag_core.params.reading import load_params, parse_params
from pag_core.params.reading import plain_params as read_plain
from pag_core.params.sections import Params
from pag_core.params.values import ARCHITECTURE_NAMES, Source
from pag_core.params.yaml_text import written_yaml
from tests.fixtures.samples import PARAMS, ROOT, changed


@pytest.mark.parametrize("path", [PARAMS, ROOT / "params.yaml"], ids=["of the tests", "of the repository"])
def test_params_are_valid(path):
    """Whatever the user has set, both have the keys that there are."""
    load_params(path)


def test_a_lambda_of_auto_is_the_sources():
    assert load_params(PARAMS).lambda_ == 2.0


@pytest.mark.parametrize(
    "arch", ["own.networks:convnet", "own.mine.networks:Net_2", "timm:resnet10t", "timm:vit_tiny.x"]
)
def test_networks_of_ones_own_and_of_timm_have_names(make_params, arch):
    assert make_params({"arch": arch, "classifier.options": {"width": 3, "blocks": [1, 2]}}).arch == arch


DATASETS = ", ".join(get_args(Params.model_fields["dataset"].annotation))
ARCHS = ", ".join((*ARCHITECTURE_NAMES, "own.FILE:FUNCTION", "timm:NAME"))
SOURCES = ", ".join(get_args(Source))
REFUSED_VALUES = [
    # changed key, value, what the message must hold
    ("dataset", "digit", ["dataset", "'digit'", DATASETS, "did you mean 'digits'"]),
    ("source", "sgb", ["source", "'sgb'", SOURCES, "did you mean 'sbg'"]),
    ("arch", "resnet_18", ["arch", ARCHS, "did you mean 'resnet18'"]),
    *(
        ("arch", name, ["arch", repr(name), ARCHS])
        for name in ("own.networks", "own:net", "mine.networks:net", "timm:", "timm:a b")
    ),
    ("arch", "own.networks:a.b", ["arch", ARCHS]),
    ("source", "own.gradients:mine", ["write own here, and own.function: own.gradients:mine"]),
    ("source", "own", ["source own needs own.function"]),
    ("pag_score.reference", "own", ["source own needs own.function"]),
    ("own.function", "mine.gradients:f", ["own.function", "'mine.gradients:f'"]),
    ("own.options", [1], ["own.options"]),
    ("lambda", -0.5, ["lambda", "-0.5", "greater than or equal to 0"]),
    ("lambda", float("nan"), ["lambda", "nan", "finite"]),
    ("lambda", "nan", ["lambda", "nan", "finite"]),
    ("lambda", float("inf"), ["lambda", "inf", "finite"]),
    ("lambda", True, ["lambda", "True", "not a boolean"]),
    ("lambda", None, ["lambda", "None"]),
    ("lambda", "much", ["lambda", "'much'"]),
    ("lambda", [1.0], ["lambda"]),
    ("seed", -1, ["seed", "-1"]),
    ("seed", 2**32, ["seed", str(2**32)]),
    ("seed", 1.5, ["seed", "1.5"]),
    ("seed", True, ["seed", "True"]),
    ("device", "gpu", ["device", "'gpu'"]),
    ("device", "cuda:x", ["device", "'cuda:x'"]),
    ("image_folder", "", ["image_folder"]),
    ("prepare", None, ["prepare", "None"]),
    ("prepare", [1], ["prepare"]),
    ("prepare.validation_fraction", 0, ["prepare.validation_fraction", "0"]),
    ("prepare.validation_fraction", 1, ["prepare.validation_fraction", "1"]),
    ("prepare.test_fraction", False, ["prepare.test_fraction", "boolean"]),
    ("prepare.images_per_class", 0, ["prepare.images_per_class", "0"]),
    ("prepare.image_size", 32.0, ["prepare.image_size", "32.0"]),
    ("cm.factor", 0, ["cm.factor", "0"]),
    ("nn.samples_per_class", 1, ["nn.samples_per_class", "1"]),
    ("diffusion.channels", 33, ["diffusion.channels", "33", "multiple of 32"]),
    ("diffusion.channel_multipliers", [], ["diffusion.channel_multipliers"]),
    ("diffusion.channel_multipliers", [1, 0], ["diffusion.channel_multipliers.1", "0"]),
    ("diffusion.dropout", 1.0, ["diffusion.dropout", "1.0"]),
    ("diffusion.schedule", "cosin", ["diffusion.schedule", "linear, cosine", "did you mean 'cosine'"]),
    ("diffusion.timesteps", 1, ["diffusion.timesteps", "1"]),
    ("diffusion.timestep_window", [350, 250], ["diffusion", "timestep_window [350, 250]"]),
    ("diffusion.timestep_window", [0, 1000], ["diffusion", "timestep_window [0, 1000]", "timesteps=1000"]),
    ("diffusion.timesteps", 20, ["diffusion", "timesteps 20", "linear", "more than 20, or schedule: cosine"]),
    ("diffusion.timestep_window", [-1, 10], ["diffusion.timestep_window.0", "-1"]),
    ("diffusion.timestep_window", [1, 2, 3], ["diffusion.timestep_window"]),
    ("diffusion.timestep_window", [], ["diffusion.timestep_window: [] has too few values"]),
    ("train.epochs", 10**12, ["train.epochs", "less than or equal to 1000000000"]),
    ("diffusion.channels", 2**20, ["diffusion.channels", "less than or equal to 16384"]),
    ("train.compile", "yes", ["train.compile", "'yes'", "boolean"]),
    ("diffusion.learning_rate", 0, ["diffusion.learning_rate"]),
    ("diffusion.ema_decay", 1, ["diffusion.ema_decay"]),
    ("diffusion.steps", True, ["diffusion.steps", "True"]),
    ("sbg.timestep", -1, ["sbg.timestep", "-1"]),
    ("sbg.draws", 0, ["sbg.draws", "0"]),
    ("sbg.precision", "bf16", ["sbg.precision", "float32, tf32, bfloat16, float16"]),
    ("sbg.min_cosine", 1.1, ["sbg.min_cosine", "1.1"]),
    ("sbg.compile", 1, ["sbg.compile", "1"]),
    ("gradient_store.dtype", "int4", ["gradient_store.dtype", "int8, float16, float32", "did you mean 'int8'"]),
    ("gradient_store.images_per_chunk", 100, ["gradient_store", "images_per_shard=512", "images_per_chunk=100"]),
    ("feed.mode", "mapped", ["feed.mode", "auto, resident, memory_map"]),
    ("feed.budget_gb", 0, ["feed.budget_gb", "greater than 0"]),
    ("feed.window_shards", 0, ["feed.window_shards", "0"]),
    ("classifier.activation", "relue", ["classifier.activation", "relu, silu, gelu", "did you mean 'relu'"]),
    ("classifier.width", 0, ["classifier.width", "0"]),
    ("train.epochs", 0, ["train.epochs", "0"]),
    ("train.epochs", "30", ["train.epochs", "'30'"]),
    ("train.optimizer", "adam", ["train.optimizer", "adamw, sgd", "did you mean 'adamw'"]),
    ("train.momentum", 1, ["train.momentum"]),
    ("train.validate_every", -1, ["train.validate_every", "-1"]),
    ("train.keep", "bst", ["train.keep", "last, best", "did you mean 'best'"]),
    ("train.keep", "best", ["train", "validate_every is 0 of 20 epochs: set it to 1 to 19, or keep: last"]),
    ("train.weight_decay", -1e-4, ["train.weight_decay"]),
    ("train.schedule", "steps", ["train.schedule", "cosine, step, constant", "did you mean 'step'"]),
    ("train.augmentation", "flip", ["train.augmentation", "none, crop_flip"]),
    ("checkpoint_seconds", -1, ["checkpoint_seconds"]),
    ("validation.radii", {"L3": [1]}, ["validation.radii", "'L3'", "L2, Linf"]),
    ("validation.radii", {"Linf": ["8/0"]}, ["validation.radii.Linf.0", "8/255", "'8/0'"]),
    ("validation.batch_size", 0, ["validation.batch_size"]),
    ("masking.batch_size", -1, ["masking.batch_size"]),
    ("pag_score.batch_size", 1.5, ["pag_score.batch_size"]),
    ("figures.batch_size", None, ["figures.batch_size"]),
    ("objective.output", "softmax", ["objective.output", "logit, log_softmax", "did you mean 'log_softmax'"]),
    ("objective.classes_per_step", 0, ["objective.classes_per_step"]),
    ("objective.scaling", "sum", ["objective.scaling", "all, drawn"]),
    ("objective.batch_norm", "repeated", ["objective.batch_norm", "did you mean 'repeat'"]),
    ("objective.weight_warmup", 0.5, ["objective.weight_warmup", "0.5"]),
    ("objective.weight_warmup", {"factor": 0, "epochs": 5}, ["objective.weight_warmup.factor", "0"]),
    ("objective.weight_warmup", {"factor": 0.5, "epoch": 5}, ["weight_warmup.epoch is an unknown key", "'epochs'?"]),
    ("objective.weight_warmup", {"factor": 0.5}, ["objective.weight_warmup.epochs is missing", "factor, epochs"]),
    ("autoattack.radii", {}, ["autoattack.radii"]),
    ("autoattack.radii", {"Linff": [1]}, ["autoattack.radii", "did you mean 'Linf'"]),
    ("autoattack.radii", {"Linf": ["8/0"]}, ["autoattack.radii.Linf.0", "'8/0'"]),
    ("autoattack.radii", {"Linf": [0]}, ["autoattack.radii.Linf.0", "positive"]),
    ("autoattack.radii", {"Linf": ["-8/255"]}, ["autoattack.radii.Linf.0", "positive", "-8/255"]),
    ("autoattack.radii", {"Linf": [True]}, ["autoattack.radii.Linf.0", "True"]),
    ("autoattack.radii", {"Linf": ["eight"]}, ["autoattack.radii.Linf.0", "'eight'"]),
    ("autoattack.radii", {"Linf": [float("nan")]}, ["autoattack.radii.Linf.0", "nan"]),
    ("autoattack.radii", {"Linf": [float("inf")]}, ["autoattack.radii.Linf.0", "inf"]),
    ("autoattack.radii", {"Linf": [None]}, ["autoattack.radii.Linf.0", "None"]),
    ("autoattack.radii", {"Linf": "8/255"}, ["autoattack.radii.Linf", "8/255"]),
    ("autoattack.radii", {"L2": ["0.5 "]}, ["autoattack.radii.L2.0", "'0.5 '", "without blanks"]),
    ("autoattack.radii", {"L2": ["\t1"]}, ["autoattack.radii.L2.0", "without blanks"]),
    ("at.radius", "8 / 255", ["at.radius", "'8 / 255'", "without blanks"]),
    ("foolbox.grid", {"L2": [1], "L1": [1]}, ["foolbox", "L0"]),
    ("foolbox.grid", {"L2": [1], "L1": [1], "L0": []}, ["foolbox.grid.L0"]),
    ("masking.radii", {"L2": []}, ["masking.radii.L2"]),
    ("masking.transfer_radii", {}, ["masking.transfer_radii"]),
    ("pag_score.reference", "sgb", ["pag_score.reference", "did you mean 'sbg'"]),
    ("figures.targeted_radius", {"L2": 1, "Linf": 1}, ["figures.targeted_radius"]),
    ("figures.targeted_radius", {}, ["figures.targeted_radius"]),
]


def test_the_best_epoch_is_by_what_is_validated(plain_params):
    kept = {"train.validate_every": 1, "train.keep": "best", "train.best_by": "L2", "validation.radii": {"Linf": [0.1]}}
    with pytest.raises(
        ParamsError, match=r"train\.best_by is L2, and validation\.radii has Linf alone: set it to one of"
    ):
        parse_params(changed(plain_params, kept))
    parse_params(changed(plain_params, kept | {"train.best_by": "robust"}))


@pytest.mark.parametrize(("key", "value", "words"), REFUSED_VALUES, ids=[f"{k}={v!r}" for k, v, _ in REFUSED_VALUES])
def test_refused_values_are_named(plain_params, key, value, words):
    with pytest.raises(ParamsError) as caught:
        parse_params(changed(plain_params, {key: value}), "here.yaml")
    message = str(caught.value)
    assert message.startswith("here.yaml:")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("key", "nearest", "some_allowed"),
    [
        ("lamda", "lambda", ["lambda", "dataset", "gradient_store"]),
        ("weight", None, ["lambda"]),
        ("datasets", "dataset", ["dataset"]),
        ("train.epoch", "epochs", ["epochs", "optimizer"]),
        ("prepare.validation_fractions", "validation_fraction", ["test_fraction"]),
        ("objective.class_per_step", "classes_per_step", ["scaling", "differentiation"]),
        ("diffusion.chanels", "channels", ["channel_multipliers"]),
        ("oi.factor", None, []),
        ("figures.zzz", None, ["targeted_radius"]),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(plain_params, key, nearest, some_allowed):
    with pytest.raises(ParamsError, match=f"{key} is an unknown key; allowed:") as caught:
        parse_params(changed(plain_params, {key: 1}))
    line = next(line for line in str(caught.value).splitlines() if f"{key} is an unknown key" in line)
    for name in some_allowed:
        assert name in line
    # the sections' names must not be offered where a key of a section is wrong
    assert ("gradient_store" in line) == ("." not in key)
    assert (f"did you mean {nearest!r}?" in line) if nearest else ("did you mean" not in line)


@pytest.mark.parametrize(
    "key", ["lambda", "seed", "prepare", "figures", "train.epochs", "objective.output", "cm.factor"]
)
def test_missing_keys_are_named(plain_params, key):
    *sections, last = key.split(".")
    place = plain_params
    for section in sections:
        place = place[section]
    del place[last]
    with pytest.raises(ParamsError, match=f"{key} is missing; allowed: .*{last}"):
        parse_params(plain_params)


def test_every_problem_is_listed_at_once(plain_params):
    content = changed(plain_params, {"train.epochs": 0, "lamda": 3, "arch": "vgg"})
    with pytest.raises(ParamsError) as caught:
        parse_params(content)
    for word in ("train.epochs", "lamda", "'vgg'"):
        assert word in str(caught.value)


def test_radii_are_kept_as_written(make_params):
    params = make_params({"autoattack.radii": {"Linf": ["8/255", 0.03, 1, "1e-2"]}})
    assert params.autoattack.radii["Linf"] == ("8/255", "0.03", "1", "1e-2")
    values = [radius_value(label) for label in params.autoattack.radii["Linf"]]
    assert values == pytest.approx([8 / 255, 0.03, 1, 0.01], rel=1e-15)


def test_exponents_without_a_point_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-3 as text."""
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text()
    assert "weight_decay: 1.0e-4" in text
    path.write_text(text.replace("weight_decay: 1.0e-4", "weight_decay: 1e-4"))
    assert load_params(path).train.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("a: [1", "is not YAML"),
        ("a: 2026-13-01", "is not YAML: month must be in"),
        ("- 1\n", "not list"),
        ("", "not NoneType"),
    ],
)
def test_unusable_files_are_refused(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParamsError, match=words):
        load_params(path)


def test_params_are_frozen(make_params):
    params = make_params()
    for section, name in ((params, "weight"), (params.train, "epochs"), (params.objective, "scaling")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_section_spells_keys_as_the_file_does(plain_params, make_params):
    params = make_params({"lambda": 2.5, "objective.output": "logit"})
    plain_params["objective"]["output"] = "logit"
    assert params.section("lambda", "seed") == {"lambda": 2.5, "seed": plain_params["seed"]}
    assert params.section("objective") == {"objective": plain_params["objective"]}
    assert params.section("diffusion")["diffusion"]["timestep_window"] == plain_params["diffusion"]["timestep_window"]
    with pytest.raises(KeyError):
        params.section("weight")


def test_sections_of_every_kind_round_trip(plain_params, make_params):
    """A dump of everything parses to the same parameters: nothing is lost, nothing is spelled otherwise."""
    params = make_params()
    again = parse_params(params.section(*plain_params))
    assert again == params
    assert set(params.section(*plain_params)) == set(plain_params)


@pytest.mark.parametrize(
    ("source", "suited"),
    [("none", "log_softmax"), ("oi", "logit"), ("cm", "logit"), ("nn", "logit"), ("sbg", "log_softmax")],
)
def test_the_output_aligned_suits_the_source_unless_given(make_params, source, suited):
    """Heuristic targets aligned with the log-probability cost the clean accuracy."""
    assert make_params({"source": source}).objective.output == suited
    for given in ("logit", "log_softmax"):
        assert make_params({"source": source, "objective.output": given}).objective.output == given


def test_lambda_is_the_sources_own_unless_given(make_params, plain_params):
    for source, own in plain_params["source_defaults"].items():
        given = {"source": source, "own.function": "own.gradients:mine"}
        assert make_params(given).lambda_ == own["lambda"]
        assert make_params({**given, "lambda": 0.25}).lambda_ == 0.25
    assert make_params({"source": "cm"}).section("lambda") == {
        "lambda": plain_params["source_defaults"]["cm"]["lambda"]
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source_defaults.oi.lambda": -1, "source": "oi"}, ["source_defaults.oi.lambda: -1", "lambda: -1"]),
        ({"source_defaults.cm.lambda": "auto", "source": "cm"}, ["source_defaults.cm.lambda: 'auto'"]),
        ({"source_defaults": None}, ["source_defaults"]),
        (
            {"source_defaults": {"sbg": {"lambda": 1.0, "output": "logit"}}},
            [f"source_defaults.oi is missing; allowed: {SOURCES}"],
        ),
        ({"source": "sgb"}, ["source: 'sgb'"]),
        ({"source": ["sbg"]}, ["source: ['sbg']"]),
    ],
)
def test_a_lambda_that_cannot_be_looked_up_is_refused(plain_params, changes, words):
    with pytest.raises(ParamsError) as caught:
        parse_params(changed(plain_params, changes))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("place", ["data/pretrained_classifier", "/elsewhere/data/classifier"])
def test_an_imported_classifier_has_no_source_and_no_method_of_the_file(make_params, place):
    changes = {"source": "sbg", "lambda": 3.0, "control": "other_class", "method": "at"}
    found = make_params({**changes, "classifier_checkpoint": place})
    assert (found.source, found.lambda_, found.control, found.method) == ("none", 0.0, None, "standard")
    trained = make_params({**changes, "classifier_checkpoint": "./data/classifier"})
    assert (trained.source, trained.lambda_, trained.control, trained.method) == tuple(changes.values())


def test_validation_leaves_the_input_alone(plain_params):
    before = copy.deepcopy(plain_params)
    parse_params(plain_params)
    assert plain_params == before


@pytest.mark.parametrize("key", ["autoattack.radii", "masking.transfer_radii"])
def test_a_norm_without_radii_is_refused(plain_params, key):
    with pytest.raises(ParamsError, match=key):
        parse_params(changed(plain_params, {key: {"L2": []}}))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(PARAMS.read_bytes() + b"# caf\xe9\n")
    with pytest.raises(ParamsError):
        load_params(path)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text() + "\nlambda: 0.0\n")
    with pytest.raises(ParamsError, match="lambda"):
        load_params(path)


ANCHORED = """
base: &base {x: 1, y: 1}
other: &other {y: 2, z: 2}
"""


@pytest.mark.parametrize("line", ["a: {x: 1, x: 1}", "a: {<<: *base, x: 2, x: 3}", "a: {<<: *base, <<: *other}"])
def test_a_key_written_twice_is_refused_wherever_it_stands(line):
    repeated = "'<<'" if "x" not in line else "'x'"
    with pytest.raises(
        ParamsError, match=rf"here is not YAML: the key {repeated} is given twice \(line 4, column \d+\)"
    ):
        read_plain(f"{ANCHORED}{line}\n".encode(), "here")


def test_a_key_beside_a_merge_takes_the_place_of_the_merged_one():
    """Also where a mapping is merged into one above it, which is read first."""
    text = (
        f"{ANCHORED}"
        + """
deep: {down: {below: &own {<<: *base, x: 3}}}
top: {<<: *own, y: 4}
both: {<<: [*base, *other]}
"""
    )
    assert read_plain(text.encode(), "here") == {
        "base": {"x": 1, "y": 1},
        "other": {"y": 2, "z": 2},
        "deep": {"down": {"below": {"x": 3, "y": 1}}},
        "top": {"x": 3, "y": 4},
        "both": {"x": 1, "y": 1, "z": 2},
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: sbg", "source: sgb", ["bad.yaml", "source: 'sgb'", "did you mean 'sbg'"]),
        ("lambda: auto", "lamda: auto", ["lambda is missing", "lamda is an unknown key", "did you mean 'lambda'"]),
        ("seed: 1", "seed: [1", ["is not YAML"]),
    ],
)
def test_a_file_of_parameters_is_checked_by_a_command(plain_params, tmp_path, capsys, old, new, words):
    """Of these DVC says that a file is missing, or a parameter."""
    text = written_yaml({**plain_params, "source": "sbg", "lambda": "auto", "seed": 1})
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    check_file(file)
    assert capsys.readouterr() == ("", "")
    file.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
    with pytest.raises(SystemExit) as ended:
        check_file(file)
    message = capsys.readouterr().err
    assert ended.value.code == 1 and message.startswith("ParamsError: ") and all(word in message for word in words)
    assert "sgb" not in new or "lambda" not in message  # what cannot be looked up is no mistake of its own


@pytest.mark.parametrize("change", ["lambda=1.5", "train.epochs=3", "processes=2", "source=cm", "masking.steps=7"])
def test_dvc_rewrites_the_one_line_that_is_set(tmp_path, change):
    """`dvc exp run -S` writes the whole file anew, in its own layout: that of the file already."""
    # with the keys of the repository's, which the user may have laid out otherwise
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    before = (tmp_path / "params.yaml").read_text().splitlines()
    apply_overrides(tmp_path / "params.yaml", [change])
    after = (tmp_path / "params.yaml").read_text().splitlines()
    changed_lines = [line for line, other in zip(after, before, strict=True) if line != other]
    assert len(changed_lines) == 1 and changed_lines[0].split()[1] == change.partition("=")[2]

"""YAML is read as DVC reads it, so that what runs is what dvc.lock records."""

import datetime
import math
import string

import pytest
from dvc.utils.serialize import loads_yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.description.experiment import read_experiment
from experiments.overview.lock_files import outdated
from pag_core.errors import ParamsError
from pag_core.params.reading import load_params, plain_params
from pag_core.params.yaml_text import read_yaml, written_yaml
from tests.fixtures.samples import ROOT

# by YAML 1.2 as DVC's parser has it; YAML 1.1 reads most of them otherwise
VALUES = {
    "0123": 123, "010": 10, "-0123": -123, "08": 8, "0o17": 15, "0x1F": 31, "0b11": 3, "1_000": 1000, "1:30": "1:30",
    "190:20:30.15": "190:20:30.15", "yes": "yes", "No": "No", "on": "on", "OFF": "OFF", "y": "y", "true": True, "~": None,
    "null": None, "1e-05": 1e-5, "1e5": 1e5, "+.5": 0.5, ".5e3": ".5e3", "1.": 1.0, ".inf": math.inf, "8/255": "8/255",
    "2026-11-30": datetime.date(2026, 11, 30), "0X1f": "0X1f", "0123.5": 123.5, "'0123'": "0123", "!!str 12": "12",
}  # fmt: skip


# the same examples in every run, however busy the machine is
fixed = settings(deadline=None, derandomize=True, max_examples=300)


def same(value, other):
    return type(value) is type(other) and (value == other or (value != value and other != other))


def read_or_refused(spelling):
    try:
        return plain_params(f"a: {spelling}".encode(), "here")
    except ParamsError:
        return None


@pytest.mark.parametrize("spelling", VALUES)
def test_a_value_is_what_dvc_takes_it_for(spelling):
    for text in (f"a: {spelling}", f"a: [{spelling}]", f"{{a: {spelling}}}"):
        found = plain_params(text.encode(), "here")["a"]
        found = found[0] if isinstance(found, list) else found
        assert same(found, VALUES[spelling])
    assert same(loads_yaml(f"a: {spelling}")["a"], VALUES[spelling])


@fixed
@given(st.text("0123456789_+-.:eExXoOb~/ ", min_size=1, max_size=10) | st.text(string.printable, max_size=10))
def test_any_spelling_is_read_as_dvc_reads_it_or_refused(spelling):
    found = read_or_refused(spelling)
    if found is not None:
        assert repr(found) == repr(loads_yaml(f"a: {spelling}"))


@pytest.mark.parametrize(("spelling", "seed"), [("0123", 123), ("010", 10), ("0o17", 15), ("1:30", None), ("0x", None)])
def test_a_seed_is_the_one_that_dvc_records_or_refused(tmp_path, spelling, seed):
    """`seed: 0123` ran with 83 and was locked as 123, so that `seed: 123` rebuilt nothing."""
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("seed: "))
    path.write_text(text.replace(line, f"seed: {spelling}"))
    if seed is None:
        with pytest.raises(ParamsError, match=f"seed: '{spelling}'"):
            load_params(path)
    else:
        assert load_params(path).seed == loads_yaml(path.read_text())["seed"] == seed


def test_a_whole_file_is_read_as_dvc_reads_it():
    for file in ("params.yaml", "dvc.yaml", "experiments/published.yaml", "experiments/cifar10_resnet18.yaml"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert read_yaml(text) == loads_yaml(text)


WORDS = st.sampled_from(
    ["1e-3", "0123", "0o17", "1:30", "yes", "null", "~", "2026-11-30", ".5e3", "=", "<<", "- x", ""]
)
SCALARS = WORDS | st.text(max_size=8) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


@fixed
@example({"a\x85": "b\u2028c\x85"})
@given(st.dictionaries(WORDS | st.text(max_size=5), st.lists(SCALARS, max_size=3) | SCALARS, max_size=4))
def test_what_is_written_is_read_as_it_was(content):
    """By this project and by DVC, in the same order: a word that would read as a number is in quotes."""
    text = written_yaml(content)
    for found in (read_yaml(text), loads_yaml(text)):
        assert repr(found) == repr(content) or (found == content and list(found) == list(content))


def test_rows_are_for_people_and_hold_the_same():
    content = {"z": {"radii": {"L2": [0.5, "8/255"]}, "name": "Käse"}, "a": [], "seed": "0123"}
    text = written_yaml(content, in_rows=True)
    assert "L2: [0.5, 8/255]" in text and "Käse" in text
    assert read_yaml(text) == loads_yaml(text) == content and list(read_yaml(text)) == ["z", "a", "seed"]


def test_parameters_of_a_command_are_read_alike():
    file = ROOT / "experiments/digits_rivals.yaml"
    experiment = read_experiment(file, "full", ["train.epochs=010", "train.weight_decay=1e-5"])
    for params in experiment.params.values():
        assert params["train"]["epochs"] == 10 and params["train"]["weight_decay"] == 1e-5


def test_a_lock_file_is_read_as_dvc_wrote_it():
    """A seed of 123, however it was spelled, is not that of another run."""
    stage = {"params": {"params.yaml": {"seed": 123}}, "outs": [{"path": "data/x", "md5": "m"}]}
    for spelling, old in (("0123", set()), ("123", set()), ("83", {"data/x"})):
        assert outdated({"prepare": stage}, plain_params(f"seed: {spelling}".encode(), "here")) == old

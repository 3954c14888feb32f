"""Every key of params.yaml with every kind of wrong value: refused by name, or taken as what it says."""

import math

import pytest

from pag_core.errors import ParamsError
from pag_core.params.reading import parse_params
from tests.fixtures.samples import changed, plain_params

PLAIN = plain_params()
WRONG = [
    None, True, -1, 0, 0.5, -0.5, 10**12, -(10**12), 10**400, math.nan, math.inf, "", "a word", "1e3", "nan", "8/255",
    [], [1], [1, 2, 3], [[]], [None], [-1, 10**12], {}, {"a word": 1}, {"L2": []}, {"L2": [None]}, {1: 2}, {None: None},
]  # fmt: skip


def keys_of(content, before=""):
    """Every section and value by its dotted name."""
    for name, value in content.items():
        yield before + name
        if isinstance(value, dict) and not name.endswith(("radii", "radius", "grid")):
            yield from keys_of(value, f"{before}{name}.")


@pytest.mark.parametrize("key", list(keys_of(PLAIN)))
def test_wrong_values_are_refused_by_name(key):
    for value in WRONG:
        try:
            params = parse_params(changed(PLAIN, {key: value}))
        except ParamsError as error:
            # a relation between two values names the section
            assert key in str(error) or f"  {key.rpartition('.')[0]}: " in str(error), (value, str(error))
        else:
            taken = at(params, key)
            if key.endswith(("radius", "step_size")) and value is not None:
                value = str(value)  # kept as it is written, for fractions
            if key == "sbg.timestep" and value == [1]:
                value = 1  # one noise level, as a list
            if isinstance(taken, float):
                value = float(value)
            assert taken == value and type(taken) is type(value), (value, taken)


def at(params, key):
    found = params.section(key.partition(".")[0])
    for part in key.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize("key", list(keys_of(PLAIN)))
def test_no_size_is_beyond_what_any_machine_has(key):
    """A size of 10^12 is refused where it is read, not where memory runs out; real numbers and names are no sizes."""
    for value in (10**12, [10**12], [1, 10**12]):
        try:
            params = parse_params(changed(PLAIN, {key: value}))
        except ParamsError:
            continue
        assert isinstance(at(params, key), float), f"{key} takes {value}"

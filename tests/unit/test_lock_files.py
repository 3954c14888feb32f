"""DVC's lock files: what ran with other parameters or inputs, and what need not run again."""

import functools
import hashlib

import pytest

from experiments.described_stages import described_stages, outputs_of
from experiments.description import base_params
from experiments.lock_files import is_of_now, locked_stages, outdated
from pag_core.params.reading import plain_params
from pag_core.pipeline.code_identity import CHECKOUT, code_record


def test_what_dvc_made_with_other_parameters_is_outdated():
    def md5s(*pairs):
        return [{"path": path, "hash": "md5", "md5": md5} for path, md5 in pairs]

    train = {"params": {"params.yaml": {"lambda": "auto", "train": {"epochs": 20}, "source_defaults.cm": {"lambda": 1}}},
             "deps": md5s(("data/gradients/cm.zarr", "g")),
             "outs": md5s(("data/classifier", "c"), ("metrics/training.json", "t"))}  # fmt: skip
    attack = {"deps": md5s(("data/classifier", "c")), "outs": md5s(("metrics/autoattack.json", "a"))}
    store = {"outs": md5s(("data/gradients/cm.zarr", "g"))}
    params = {"lambda": "auto", "train": {"epochs": 20}, "source_defaults": {"cm": {"lambda": 1}}}
    stages = {"train": train, "autoattack": attack, "heuristic@cm": store}
    after_training = {"data/classifier", "metrics/training.json", "metrics/autoattack.json"}
    assert outdated(stages, params) == outdated({}, params) == set()
    # the parameters have changed since, or are gone; training ran again, but not the attack; the store was made anew
    assert outdated(stages, {**params, "lambda": 3}) == outdated(stages, {"lambda": "auto"}) == after_training
    again = {**train, "outs": md5s(("data/classifier", "new"), ("metrics/training.json", "t"))}
    assert outdated({"train": again, "autoattack": attack}, params) == {"metrics/autoattack.json"}
    anew = {"outs": md5s(("data/gradients/cm.zarr", "other"))}
    assert outdated({**stages, "heuristic@cm": anew}, params) == after_training


def test_the_check_is_outdated_by_any_parameter_and_nothing_behind_it_is():
    """It reads them all, and writes the same where they fit."""

    def entry(path):
        return {"path": path, "md5": "m"}

    check = {"params": {"params.yaml": {"seed": 1, "device": "cpu"}}, "deps": [], "outs": [entry("data/check.txt")]}
    train = {
        "params": {"params.yaml": {"seed": 1}},
        "deps": [entry("data/check.txt")],
        "outs": [entry("data/classifier")],
    }
    stages = {"check": check, "train": train}
    assert outdated(stages, {"seed": 1, "device": "cuda"}) == {"data/check.txt"}
    assert outdated(stages, {"seed": 2, "device": "cpu"}) == {"data/check.txt", "data/classifier"}


@pytest.mark.parametrize("written", ["1e-05", "0.00001", "1.0e-5", "1E-5"])
@pytest.mark.parametrize("locked", ["1e-05", "1.0e-05"])
def test_small_numbers_are_the_same_however_they_are_written(written, locked):
    """DVC writes 1e-05, which YAML 1.1 takes for a word."""
    outs = "outs: [{path: metrics/training.json, md5: m}]"
    content = f"stages: {{train: {{params: {{params.yaml: {{train: {{weight_decay: {locked}}}}}}}, {outs}}}}}"
    for value, old in ((written, set()), ("2e-05", {"metrics/training.json"})):
        params = plain_params(f"train: {{weight_decay: {value}}}".encode(), "params.yaml")
        assert outdated(locked_stages({"dvc.lock": content.encode()}), params) == old


WANTED = ("autoattack", "pag_score")


def as_locked(params):
    """The stages of an experiment as DVC would have locked them now."""
    return {
        name: {
            "cmd": described["cmd"],
            "deps": [{"path": path, "md5": md5_now(path)} for path in described["deps"]],
            "params": {"params.yaml": {key: 1 for key in described.get("params", []) if isinstance(key, str)}},
            "outs": [{"path": path, "md5": "m"} for path in outputs_of(described)],
        }
        for name, described in described_stages(params).items()
    }


@pytest.fixture
def locked():
    return as_locked(base_params())


@functools.cache
def md5_now(path):
    """That of the record of a stage's code; of other inputs any."""
    program = CHECKOUT / "stages" / path.removeprefix("data/code/").replace(".txt", ".py")
    return hashlib.md5(code_record(program).encode()).hexdigest() if path.startswith("data/code/") else "m"


def test_what_ran_as_described_need_not_run_again(locked):
    assert is_of_now(locked, base_params(), WANTED)


@pytest.mark.parametrize("stage", ["autoattack", "sbg", "prepare", "baseline"])
@pytest.mark.parametrize("changed", ["cmd", "code", "dep", "out", "param", "gone"])
def test_a_stage_that_is_described_otherwise_runs_again(locked, stage, changed):
    """The one that is wanted, or one before it."""
    if changed == "cmd":
        locked[stage]["cmd"] += " --fast"
    elif changed == "code":
        (code,) = (dep for dep in locked[stage]["deps"] if dep["path"].startswith("data/code/"))
        code["md5"] = "of other code"
    elif changed == "dep":
        locked[stage]["deps"].pop()
    elif changed == "out":
        locked[stage]["outs"].append({"path": "data/more", "md5": "m"})
    elif changed == "param":
        locked[stage]["params"]["params.yaml"].popitem()
    else:
        del locked[stage]
    assert not is_of_now(locked, base_params(), WANTED)


def test_stages_that_are_not_needed_may_be_old(locked):
    """So may the check, which nothing is made from."""
    for stage in ("report", "heuristic@cm", "foolbox", "check"):
        locked[stage]["cmd"] = "python old.py"
    assert is_of_now(locked, base_params(), WANTED)
    assert not is_of_now(locked, base_params(), ("report",))


@pytest.mark.parametrize(
    ("changes", "of_now"),
    [
        ({"image_folder": "elsewhere"}, True),
        ({"dataset": "image_folder"}, False),
        ({"dataset": "image_folder", "arranged": True}, True),
        ({"diffusion_checkpoint": "data/pretrained"}, False),
    ],
)
def test_what_the_user_may_have_changed_is_asked_for_again(tmp_path, changes, of_now):
    """Images that were arranged are in a place that is named after their content, and cannot have changed."""
    params = {**base_params(), "image_folder": str(tmp_path), **changes}
    if params.pop("arranged", False):
        (tmp_path / "origin.json").touch()
    assert is_of_now(as_locked(params), params, WANTED) == of_now

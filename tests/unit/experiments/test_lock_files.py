"""DVC's lock files: what ran with other parameters or inputs."""

import pytest

from experiments.overview.lock_files import locked_stages, outdated
from pag_core.params.reading import plain_params


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

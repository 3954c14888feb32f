"""Every benchmark at its smallest size, by the command of `make bench`: it runs, and finds what it is to find."""

import json
import math
import subprocess

import pytest

from benchmarks.__main__ import SUBJECTS
from benchmarks.measurement import processor_flags
from benchmarks.pag_step import CHEAPEST, MEANINGS
from benchmarks.training_step import BF16_UNITS
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

pytestmark = pytest.mark.slow

BF16 = f"{CHEAPEST}_bf16"
# on a processor without a bf16 unit the benchmark says so in place of the speedup, and measures nothing else of it
HAS_BF16 = bool(processor_flags() & BF16_UNITS)
RIVALS = ["class_loop", "class_batched"]
VARIANTS = [*RIVALS, *MEANINGS, f"{CHEAPEST}_channels_last", *([BF16] if HAS_BF16 else [])]
EXPECTED = {
    "training_step": {
        f"{BF16}.speedup",
        *(f"{name}.gradient_difference" for name in ["repeat", *RIVALS]),
        *(f"{name}.{key}" for name in VARIANTS for key in ("speedup", "speedup_over_default_memory")),
        "plain_repeat_default_memory.speedup",
        "plain_repeat_default_memory.images_per_second",
        *(
            f"{name}.{key}"
            for name in ["plain_repeat", *VARIANTS]
            for key in ("flops", "images_per_second", "peak_memory")
        ),
    },
    "adversarial_training": {
        *(
            f"batch_{count}.{name}.{key}"
            for count in (1, 2)
            for name in ("pag_10_classes", "pag_3_classes", "pgd_7", "pgd_20")
            for key in ("flops", "images_per_second")
        ),
        *(
            f"batch_{count}.pag_{drawn}_classes.{key}_pgd_{steps}"
            for count in (1, 2)
            for drawn in (10, 3)
            for steps in (7, 20)
            for key in ("speedup_over", "arithmetic_ratio_to")
        ),
    },
    "gradient_store": {
        f"{dtype}.{key}"
        for dtype in ("int8", "float16")
        for key in ("size", "direction_error_mean", "direction_error_max")
    },
    "sparse_store": {
        f"{size}.{key}"
        for size in ("cifar100", "tiny_imagenet")
        for key in (
            "bytes",
            *(f"{name}.speedup" for name in ("read", "batch")),
            *(f"{kind}.{name}" for kind in ("dense", "sparse") for name in ("gigabytes", "read", "batch")),
        )
    },
    "feeding": {
        *(
            f"{mode}.speedup_over_{name}"
            for mode in ("resident", "memory_map")
            for name in ("zarr_image_by_image", "zarr_selection")
        ),
        *(
            f"{name}.{key}"
            for name in ("resident", "memory_map", "zarr_image_by_image", "zarr_selection")
            for key in ("batch", "seconds_per_epoch")
        ),
    },
    "distillation": {
        "batched.difference",
        "batched.speedup_over_class_by_class",
        "batched.speedup_over_image_by_image",
        *(f"{name}.images_per_second" for name in ("batched", "class_by_class", "image_by_image")),
    },
    "processes": {
        f"{name}.{key}"
        for name in ("distillation", "attack")
        for key in ("speedup", "speedup_with_start_up", "seconds_of_one_process")
    },
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmarks") / "smallest.json"
    command = [f"{forks()}/python", "-m", "benchmarks", "--smallest", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))


def test_the_header_says_what_measured(written):
    header = written["header"]
    assert {"versions", "hardware", "date", "command", "seconds"} == set(header)
    assert set(header["seconds"]) == set(SUBJECTS) == set(EXPECTED)
    assert header["command"] == "python -m benchmarks --device cpu --smallest"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_finds_what_it_is_to_find(subject, written):
    found = {name: value for name, value in written["measurements"].items() if name.startswith(f"{subject}.")}
    expected = {f"{subject}.{name}" for name in EXPECTED[subject]}
    if subject == "processes":  # where one process has the machine to itself there is nothing to compare
        expected -= {name for name in expected - set(found) if name.endswith("seconds_of_one_process")}
    assert set(found) == expected
    for name, measurement in found.items():
        assert {"value", "unit", "compared_against"} <= set(measurement), name
        if measurement["value"] is None:
            assert measurement["not_measured"], name
        else:
            assert math.isfinite(measurement["value"]) and measurement["value"] >= 0, name


def test_bf16_is_measured_where_the_processor_has_a_unit_for_it(written):
    assert (written["measurements"][f"training_step.{BF16}.speedup"]["value"] is not None) == HAS_BF16


def test_numbers_that_do_not_depend_on_the_machine(written):
    value = {name: measurement["value"] for name, measurement in written["measurements"].items()}
    # K = 10: 3 + 6K forward passes for the plain method, at most 3 + 3K and its extra parts for one shared pass
    assert value["training_step.plain_repeat.flops"] == pytest.approx(64, rel=0.01)
    assert value[f"training_step.{CHEAPEST}.flops"] <= 34.2
    assert value["adversarial_training.batch_1.pgd_7.flops"] == pytest.approx(17, rel=0.01)
    assert value["adversarial_training.batch_1.pgd_20.flops"] == pytest.approx(43, rel=0.01)
    # the loop over classes and the batched derivative share the forward pass too
    for name in RIVALS:
        assert value[f"training_step.{name}.flops"] == pytest.approx(34, rel=0.01)
    # the project's forms of `repeat` and `class` and the plain ones are the same functions
    for name in ["repeat", *RIVALS]:
        assert value[f"training_step.{name}.gradient_difference"] < 1e-10
    assert value["gradient_store.int8.direction_error_mean"] < 1e-4
    assert value["distillation.batched.difference"] < 1e-4


def test_small_steps_have_each_variant_of_each_subject(tmp_path):
    command = [
        f"{forks()}/python",
        "-m",
        "benchmarks.small_steps",
        "--smallest",
        "--output",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["measurements"]
    expected = {
        **dict.fromkeys(("vanilla", "sbg", "gradient_norm", "at", "trades"), ("channels_last", "bfloat16")),
        "teacher": ("bfloat16",), "distillation": ("bfloat16",), "attack": ("channels_last",),
    }  # fmt: skip
    named = {f"small_steps.{subject}.{variant}" for subject, variants in expected.items() for variant in variants}
    plain = {f"small_steps.{subject}.float32" for subject in expected}
    assert set(found) == {f"{name}.seconds" for name in named | plain} | {f"{name}.speedup" for name in named}
    assert all(measurement["value"] > 0 for measurement in found.values())

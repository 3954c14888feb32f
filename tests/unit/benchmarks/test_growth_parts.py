"""What the benchmarks of growth and of a plan rest on: exponents, peaks of memory, counted predictions and FLOPs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.growth import exponent
from benchmarks.plan import Experiment, simulation, work
from benchmarks.workplace import Workplace
from pag_core.classifiers.architectures import build_classifier
from pag_core.diffusion.network import NoisePredictor, build_network
from pag_core.gradients.label_effect import label_effect
from pag_core.gradients.score_based import ScoreBased
from tests.fixtures.samples import distilled_store, sbg_params

MIB = 2**20
TIMED = "import json; json.dump({'seconds': 1.5}, open('timings/mine.json', 'w'))"
HELD = """
import mmap, os, time
os.makedirs("timings")
with open("file", "wb") as file:
    file.truncate(96 * 2**20)
file = open("file", "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
pages = [mapped[place] for place in range(0, len(mapped), 4096)]
own = bytearray(48 * 2**20)
own[::4096] = bytes(len(own) // 4096)
time.sleep(0.2)
"""


@pytest.mark.parametrize("power", [1, 1.5])
def test_the_exponent_is_that_of_what_grows(power):
    seconds = [3 + 0.5 * size**power for size in (1, 4, 16)]
    assert exponent(seconds, 4).value == pytest.approx(power)


def test_no_exponent_of_what_does_not_grow():
    found = exponent([3.0, 3.1, 9.0], 4)
    assert found.value is None and "less than" in found.not_measured


def test_a_mapped_file_is_no_anonymous_memory(tmp_path):
    cost = Workplace(tmp_path, {}).command("-c", HELD + TIMED)
    assert cost.seconds == 1.5 and cost.whole > 0.2
    assert 48 * MIB < cost.anonymous < 144 * MIB < cost.resident


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(RuntimeError, match="no such image"):
        Workplace(tmp_path, {}).command("-c", "raise SystemExit('no such image')")


@pytest.mark.parametrize("compared", [2, 10])
def test_predictions_are_those_that_the_stage_asks_for(dataset, make_predictor, tmp_path, monkeypatch, compared):
    for module in ("benchmarks.plan", "pag_core.gradients.score_based"):
        monkeypatch.setattr(f"{module}.COMPARED", compared)
    predictor, asked, predicted = make_predictor(dataset), [], NoisePredictor.predicted_noise

    def counting(self, noised, timestep, labels):
        asked.append(len(labels))
        return predicted(self, noised, timestep, labels)

    monkeypatch.setattr(NoisePredictor, "predicted_noise", counting)
    label_effect(predictor, dataset.splits["validation"], timestep=300, batch_size=5, seed=1)
    maker = ScoreBased(predictor, sbg_params())
    distilled_store(tmp_path / "sbg.zarr", maker, dataset, tmp_path / "work", classes_per_image=2, held_out_images=3)
    planned = Experiment(36, 12, 3, 2, 8, {}, 0, "small_resnet", 1, 1, held_out=3)
    assert planned.predictions == sum(asked)


def test_work_is_what_torch_counts():
    planned = simulation(640, 40)
    found, shape = work(planned), (3, 64, 64)
    network = build_network(planned.teacher, shape, planned.classes)
    with FlopCounterMode(display=False) as teacher, torch.no_grad():
        network(torch.rand(1, *shape), torch.ones(1), torch.zeros(1, dtype=torch.long))
    assert found["sbg"] == planned.predictions * teacher.get_total_flops()
    assert found["diffusion"] == pytest.approx(3 * planned.taught * teacher.get_total_flops(), rel=0.01)
    classifier = build_classifier("small_resnet", **planned.options, image_shape=shape, classes=planned.classes)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        classifier(torch.rand(1, *shape))
    # the first layer needs no gradient of its images in a plain step; with K drawn classes an aligned one takes 3 + 3K
    passes = {"baseline": 3, "train": 3 + 3 * planned.drawn}
    for stage, count in passes.items():
        assert found[stage] == pytest.approx(count * planned.images * forward.get_total_flops(), rel=0.1)
    twice = work(replace(planned, epochs=2))
    assert twice["train"] == 2 * found["train"] and twice["sbg"] == found["sbg"]

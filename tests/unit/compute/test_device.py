"""What a stage sets up on its device before it computes."""

import json
import subprocess
import sys

import pytest
import torch

from pag_core.compute import device as compute_device
from pag_core.compute.device import described_threads, device_description, prepare_device, processor_name
from tests.fixtures.samples import ROOT

PAGE = 4096
TENSOR = 64 * 2**20
# page faults of 20 tensors of 64 MiB, one after the other when there were some before, and of one of another thread
FAULTS = f"""
import json, resource, threading
import torch
from pag_core.compute.device import prepare_device

prepare_device("cpu", 1)
make = lambda: torch.zeros({TENSOR} // 4).sum().item()
for _ in range(10):
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    make()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
sums = []
other = threading.Thread(target=lambda: sums.append(make()))
other.start()
other.join()
print(json.dumps([faults, sums]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="keeping freed memory is glibc's, on Linux")
def test_large_tensors_reuse_the_memory_of_those_before():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    faults, other_thread = json.loads(done.stdout)
    assert faults < TENSOR / PAGE  # not once in 20 times
    assert other_thread == [0.0]


def test_the_number_of_threads_is_the_one_asked_for():
    before = torch.get_num_threads()
    try:
        assert prepare_device("auto" if not torch.cuda.is_available() else "cpu", 3) == torch.device("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "processor : 0\nmodel name\t: Some CPU @ 2.50GHz\nflags : a b\n\nmodel name\t: Another\n",
            "Some CPU @ 2.50GHz",
        ),
        ("processor : 0\nFeatures : a b\n", "Its family"),  # as on ARM
        (None, "Its family"),
    ],
)
def test_a_processor_is_described_by_its_model_and_the_threads(monkeypatch, tmp_path, cpuinfo, expected):
    """Sums, and so the end of a long training, differ between processors: a record that says "cpu" hides why."""
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(compute_device, "CPUINFO", file)
    monkeypatch.setattr(compute_device.platform, "processor", lambda: "Its family")
    processor_name.cache_clear()
    try:
        description = device_description(torch.device("cpu"))
    finally:
        processor_name.cache_clear()
    assert description == f"{expected}, 1 thread"
    assert described_threads(description) == 1
    assert described_threads(f"{expected}, 16 threads") == 16


def test_a_gpu_has_no_number_of_threads():
    assert described_threads("NVIDIA H200") is None

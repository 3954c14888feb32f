"""What a stage sets up on its device before it computes."""

import json
import subprocess
import sys

import pytest
import torch

from pag_core.compute.device import prepare_device
from tests.samples import ROOT

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

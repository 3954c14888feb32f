"""One seed, many streams."""

import random
import subprocess

import numpy as np
import pytest
import torch

from pag_core.compute.randomness import (
    derived_seed,
    generator,
    global_state,
    restore_global_state,
    seed_global_streams,
)
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

CPU = torch.device("cpu")

# recorded once; a change would silently change every published result
GOLDEN = [
    ((0,), 7896617691693857887),
    ((3407, "order", 0), 7838359569463571065),
    ((3407, "training draws"), 3993458429240424207),
    ((1, "ab"), 8976513281417213251),
]


@pytest.mark.parametrize(("stream", "seed"), GOLDEN)
def test_seeds_are_stable(stream, seed):
    assert derived_seed(*stream) == seed


def test_seeds_follow_numpys_published_algorithm():
    words = [3407, 257, *b"order", 256, 512 + 7]
    expected = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
    assert derived_seed(3407, "order", 7) == expected


def test_streams_differ():
    streams = [
        (seed, *names) for seed in (0, 1, 3407) for names in ((), ("a",), ("b",), ("a", 0), ("a", 1), (0,), (97,))
    ]
    seeds = {derived_seed(*stream) for stream in streams}
    assert len(seeds) == len(streams)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("a", "b"), ("ab",)), (("square", "L2", "0.75"), ("square", "L20", ".75")), (("ab", ""), ("ab",))],
)
def test_the_border_between_names_counts(first, second):
    assert derived_seed(1, *first) != derived_seed(1, *second)


def test_streams_do_not_depend_on_global_state():
    drawn = []
    for state in (1, 2):
        random.seed(state), np.random.seed(state), torch.manual_seed(state)
        drawn.append((derived_seed(5, "x"), torch.rand(3, generator=generator("cpu", 5, "x")).tolist()))
    assert drawn[0] == drawn[1]
    before = torch.get_rng_state()
    generator("cpu", 5, "x")
    assert torch.equal(before, torch.get_rng_state())


def test_global_streams_are_seeded_and_restored():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_global_streams(7, "attack")
    first = draw()
    assert draw() != first
    seed_global_streams(7, "attack")
    assert draw() == first
    seed_global_streams(7, "other")
    assert draw() != first

    torch.manual_seed(1)
    state = global_state(CPU)
    expected = torch.rand(4)
    torch.rand(100)
    restore_global_state(state, CPU)
    assert torch.equal(torch.rand(4), expected)


@pytest.fixture
def gpus(monkeypatch):
    """torch.cuda's generators as they are with as many GPUs as the list has states; asking for another raises."""
    states = []

    def index(device):
        return torch.device(device).index or 0

    def get(device="cuda"):
        return states[index(device)].clone()

    def put(state, device="cuda"):
        states[index(device)]  # an IndexError, as torch's own generators raise
        states[index(device)] = state.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [get(number) for number in range(len(states))])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state_all", lambda given: [put(state, number) for number, state in enumerate(given)]
    )
    return states


def test_a_run_goes_on_where_fewer_gpus_are_visible(gpus):
    gpus[:] = [torch.tensor([number], dtype=torch.uint8) for number in (10, 11, 12, 13)]
    state = global_state(torch.device("cuda", 2))
    gpus[:] = [torch.tensor([20], dtype=torch.uint8)]
    restore_global_state(state, torch.device("cuda"))
    assert gpus[0].tolist() == [12]


def test_the_streams_of_other_gpus_are_left_alone(gpus):
    gpus[:] = [torch.tensor([number], dtype=torch.uint8) for number in (10, 11)]
    state = global_state(torch.device("cuda", 0))
    gpus[:] = [torch.tensor([number], dtype=torch.uint8) for number in (20, 21)]
    restore_global_state(state, torch.device("cuda", 1))
    assert [part.item() for part in gpus] == [20, 10]


def test_a_run_on_the_cpu_takes_no_state_of_a_gpu(gpus):
    gpus[:] = [torch.tensor([10], dtype=torch.uint8)]
    on_gpu, on_cpu = global_state(torch.device("cuda")), global_state(CPU)
    gpus.clear()
    for state in (on_gpu, on_cpu):
        restore_global_state(state, CPU)


DETERMINISM = """
import torch
from pag_core.compute.randomness import require_determinism

require_determinism(torch.device("cuda"))
print(torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
"""


@pytest.mark.slow
def test_determinism_on_a_gpu_does_not_fill_every_new_tensor():
    """The switches are there without a GPU. In a process of its own: they are switches of the whole process."""
    command = [f"{forks()}/python", "-c", DETERMINISM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True", "False"]

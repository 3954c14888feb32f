"""The classes that are drawn for each image: distinct, and every set of them equally likely."""

import math

import pytest
import torch

from pag_core.objective.pag import drawn_classes


@pytest.mark.parametrize(("classes", "drawn"), [(10, 3), (5, 5), (7, 1)])
def test_drawn_classes_are_distinct_and_uniform(classes, drawn):
    rows = 12_000
    indices = drawn_classes(rows, classes, drawn, torch.Generator().manual_seed(0))
    assert indices.shape == (rows, drawn) and indices.dtype == torch.int64
    assert all(len(set(row)) == drawn for row in indices.tolist())
    # each class is in a row with probability K/C, and in each column with 1/C; five standard deviations
    counts = torch.bincount(indices.flatten(), minlength=classes).double()
    share = drawn / classes
    assert (counts - rows * share).abs().max() <= 5 * math.sqrt(rows * share * (1 - share)) + 1e-9
    for column in range(drawn):
        first = torch.bincount(indices[:, column], minlength=classes).double()
        assert (first - rows / classes).abs().max() <= 5 * math.sqrt(rows / classes * (1 - 1 / classes))


def test_every_subset_is_equally_likely():
    rows = 12_000
    indices = drawn_classes(rows, 4, 2, torch.Generator().manual_seed(1)).sort(1).values
    counts = {}
    for pair in map(tuple, indices.tolist()):
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - rows / 6) <= 5 * math.sqrt(rows * 5 / 36) for count in counts.values())

"""A source of the user's: its function's gradients are those in the store, and what it returns amiss is refused."""

import pytest
import torch

from pag_core.errors import ParamsError
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.own import OwnGradients
from pag_core.params.sections import OwnParams
from tests.fixtures.samples import Killed, KilledUnits, distilled_store

CPU = torch.device("cpu")
TOWARDS = """
import torch


def towards(images, labels, classes, scale=1.0):
    patterns = torch.linspace(0, 1, 64).view(8, 8) * classes[..., None, None, None]
    own = (classes == labels[:, None])[..., None, None, None]
    return scale * (patterns - images[:, None]) + own


class Noisy:
    def __init__(self, reads, width):
        self.shift = float(reads.read_text()) + width

    def __call__(self, images, labels, classes):
        return self.shift + torch.randn(*classes.shape, *images.shape[1:])
"""


def make(function, batch_size=5, reads="data/code/own/nothing.txt", **options):
    return OwnGradients(OwnParams(function=function, options=options, reads=str(reads), batch_size=batch_size), CPU)


def expected(images, labels, classes, scale):
    """By a loop over images and classes."""
    rows = torch.linspace(0, 1, 64).view(1, 8, 8)
    return torch.stack(
        [
            torch.stack([scale * (rows * int(c) - image) + (1.0 if c == label else 0.0) for c in chosen])
            for image, label, chosen in zip(images, labels, classes, strict=True)
        ]
    )


@pytest.mark.parametrize("kept", [None, 2])
def test_the_store_holds_what_the_function_gives(own, tmp_path, dataset, kept):
    own({"gradients.py": TOWARDS})
    maker = make("own.gradients:towards", scale=2.0)
    path = distilled_store(
        tmp_path / "own.zarr", maker, dataset, tmp_path / "run", source="own", dtype="float32", classes_per_image=kept
    )
    for split, count in (("train", 36), ("test", 10)):
        stored, part = GradientStore(path).gradients(dataset, split, CPU), dataset.splits[split]
        slots = torch.arange(stored.slots(3)).expand(count, -1)
        classes = stored.classes_of(torch.arange(count), slots)
        found = stored(torch.arange(count), slots)
        wanted = expected(part.pixels(slice(0, count)), part.labels[:count], classes, 2.0)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_class_is_made_once_and_told_what_it_reads(own, tmp_path, dataset):
    own({"gradients.py": TOWARDS})
    (tmp_path / "shift").write_text("2.5")
    maker = make("own.gradients:Noisy", reads=tmp_path / "shift", width=3)
    (tmp_path / "shift").write_text("7")
    images, classes = torch.rand(7, 1, 8, 8), torch.arange(3).expand(7, 3)
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (
        torch.cat([found for _, found in maker.batches(images, classes[:, 0], classes, draw)]) for draw in draws
    )
    assert first.mean() == pytest.approx(5.5, abs=0.1) and torch.equal(first, again) and not torch.equal(first, other)


def test_a_killed_run_goes_on_to_the_same_bytes(own, tmp_path, dataset):
    """Its noise is that of the shard, whoever makes it."""
    own({"gradients.py": TOWARDS})
    (tmp_path / "shift").write_text("0")

    def stored(name, folder):
        maker = make("own.gradients:Noisy", reads=tmp_path / "shift", width=0)
        return distilled_store(tmp_path / name, maker, dataset, folder, source="own")

    whole = stored("whole.zarr", tmp_path / "a")
    with pytest.raises(Killed):
        stored("again.zarr", KilledUnits(tmp_path / "b", 2))
    again = stored("again.zarr", tmp_path / "b")
    files = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file()]
    assert files and all((whole / file).read_bytes() == (again / file).read_bytes() for file in files)


REFUSED = [
    (
        "def f(images, labels, classes): return images",
        {},
        r"returned torch.float32 \[5, 1, 8, 8\]; .* \[5, 3, 1, 8, 8\]",
    ),
    ("def f(images, labels, classes): return classes", {}, r"returned torch.int64 \[5, 3\]"),
    ("def f(images, labels, classes): return None", {}, "returned NoneType"),
    ("def f(images, classes): return None", {}, r"takes \(images, classes\): too many positional arguments"),
    ("def f(images, labels, classes): return None", {"width": 3}, "unexpected keyword argument 'width'; .*width="),
    ("def f(images, labels, classes, reads): return None", {}, "has an argument `reads`; name the file"),
    ("def g(images, labels, classes): return None", {}, r"own/gradients\.py has no function or class f; it has: g"),
]


@pytest.mark.parametrize(("code", "options", "message"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_to_do(own, code, options, message):
    own({"gradients.py": code})
    with pytest.raises(ParamsError, match=message):
        images, classes = torch.rand(7, 1, 8, 8), torch.arange(3).expand(7, 3)
        list(make("own.gradients:f", **options).batches(images, classes[:, 0], classes, torch.Generator()))

"""The gradient store: what is read is what was written, or it is refused."""

import json
import shutil

import pytest
import torch

from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.shards import checked
from pag_core.gradient_store.store import GradientStore, SmallStore, write_small_store
from pag_core.gradient_store.writer import quantised
from tests.fixtures.samples import MADE_FROM, cosines, flip, gaussian, write_dense


def dequantised(gradients, dtype):
    codes, scales = quantised(gradients, dtype)
    assert codes.dtype == getattr(torch, dtype) and scales.dtype == torch.float32
    return codes.float() * scales[..., None, None, None]


@pytest.mark.parametrize(
    ("dtype", "angle", "error"), [("int8", 1e-4, 0.5 / 127), ("float16", 1e-6, 2**-11), ("float32", 1e-12, 2**-22)]
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_quantisation_error(dtype, angle, error, shape):
    gradients = gaussian(40, shape=shape)
    found = dequantised(gradients, dtype)
    assert (1 - cosines(gradients, found)).max() <= angle
    largest = gradients.abs().flatten(2).amax(2)[..., None, None, None]
    # half a step of the largest value, and float32's own rounding
    assert ((gradients - found).abs() <= largest * error * (1 + 1e-4)).all()


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_a_zero_gradient_stays_zero(dtype):
    gradients = gaussian(2)
    gradients[1, 2] = 0
    found = dequantised(gradients, dtype)
    assert (found[1, 2] == 0).all() and (found[1, 1] != 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_are_refused(tmp_path, dataset, bad):
    gradients = {"train": gaussian(36), "test": gaussian(10)}
    gradients["train"][9, 0, 0, 3, 3] = bad
    with pytest.raises(StoreError, match="not finite"):
        write_dense(tmp_path / "sbg.zarr", tmp_path / "work", dataset, gradients)
    assert not (tmp_path / "sbg.zarr").exists()


@pytest.fixture
def gradients():
    return {"train": gaussian(36), "test": gaussian(10, seed=1)}


@pytest.fixture
def dense(tmp_path, dataset, gradients):
    path = tmp_path / "sbg.zarr"
    write_dense(path, tmp_path / "work", dataset, gradients)
    return path


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_dense_round_trip(tmp_path, dataset, gradients, cpu, dtype):
    write_dense(tmp_path / "sbg.zarr", tmp_path / "work", dataset, gradients, dtype)
    assert not (tmp_path / "work").exists()
    manifest = read_manifest(tmp_path / "sbg.zarr")
    assert manifest["kind"] == "dense" and manifest["measured"] == {"draw_cosine": 0.5}
    assert manifest["provenance"] == {"seed": 1, "inputs": MADE_FROM} and manifest["images"] == {
        "train": 36,
        "test": 10,
    }
    indices, class_indices = torch.tensor([9, 0, 7]), torch.tensor([[2, 0], [1, 2], [0, 1]])
    for split, whole in gradients.items():
        found = GradientStore(tmp_path / "sbg.zarr").gradients(dataset, split, cpu, inputs=MADE_FROM)(
            indices, class_indices
        )
        assert found.dtype == torch.float32 and found.shape == (3, 2, 1, 8, 8)
        expected = dequantised(whole, dtype)
        for b in range(3):
            for k in range(2):
                assert torch.equal(found[b, k], expected[indices[b], class_indices[b, k]])


def read_everything(path, dataset, cpu):
    for split in ("train", "test"):
        GradientStore(path).gradients(dataset, split, cpu, inputs=MADE_FROM)


def test_a_flipped_byte_in_any_file_is_refused(dense, dataset, cpu):
    """The manifest, every zarr.json, the data and the index (at the end) of shards, the scales."""
    files = sorted(path for path in dense.rglob("*") if path.is_file())
    kinds = {path.name for path in files}
    assert len(files) == 1 + 7 + 2 * (5 + 2) and {"manifest.json", "zarr.json"} <= kinds
    for file in files:
        whole = file.read_bytes()
        positions = {
            0,
            3,
            len(whole) // 3,
            len(whole) // 2,
            2 * len(whole) // 3,
            len(whole) - 30,
            len(whole) - 2,
            len(whole) - 1,
        }
        for position in sorted(positions):
            if file.suffix == ".json" and whole[position : position + 1] in b" \n":
                position += 1
            flip(file, position % len(whole))
            with pytest.raises(StoreError, match="damaged"):
                read_everything(dense, dataset, cpu)
            file.write_bytes(whole)
    read_everything(dense, dataset, cpu)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path):
    """A network that fails, or too many open files, is no reason to remove a store of hours."""

    def read(error):
        raise error

    for error in (ConnectionResetError(104, "reset by peer"), OSError(24, "Too many open files")):
        with pytest.raises(
            StoreError, match=r"shard 3 could not be read .*nothing says that it is damaged, so run again"
        ):
            checked(tmp_path, "shard 3", lambda error=error: read(error))
    for error in (
        FileNotFoundError(2, "No such file"),
        ValueError("checksum"),
        RuntimeError("codec"),
        KeyError("shape"),
    ):
        with pytest.raises(StoreError, match=r"shard 3 is damaged .*remove the store"):
            checked(tmp_path, "shard 3", lambda error=error: read(error))


def test_every_byte_of_a_shard_and_its_scales_is_checked(dense, dataset, cpu):
    for name in ("test/gradient/c/1/0/0/0/0", "test/scale/c/1/0"):
        size = (dense / name).stat().st_size
        for position in range(0, size, 1 if size < 100 else 37):
            flip(dense / name, position)
            with pytest.raises(StoreError, match="shard 1 of test/"):
                GradientStore(dense).gradients(dataset, "test", cpu)
            flip(dense / name, position)
    GradientStore(dense).gradients(dataset, "test", cpu)


def test_a_deleted_or_cut_file_is_refused(dense, dataset, cpu):
    for file in sorted(path for path in dense.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        # the manifest ends with a line break, which means nothing
        file.write_bytes(whole[:-2])
        with pytest.raises(StoreError):
            read_everything(dense, dataset, cpu)
        file.unlink()
        with pytest.raises(StoreError, match=file.name):
            read_everything(dense, dataset, cpu)
        file.write_bytes(whole)
    read_everything(dense, dataset, cpu)


def test_stores_of_other_origin_are_refused(dense, dataset, make_dataset, cpu):
    with pytest.raises(StoreError, match="made from other data"):
        GradientStore(dense).gradients(make_dataset(seed=99), "train", cpu)
    with pytest.raises(StoreError, match="made for the classes class 0, class 1, class 2"):
        GradientStore(dense).gradients(make_dataset(classes=4), "train", cpu)
    with pytest.raises(StoreError, match=r"has class 0, .*class 9 \.\.\. \(200 classes\); run"):
        GradientStore(dense).gradients(
            make_dataset(classes=200, shape=(1, 2, 2), train=1, validation=1, test=1), "train", cpu
        )
    with pytest.raises(StoreError, match="made with another diffusion model"):
        GradientStore(dense).gradients(dataset, "train", cpu, inputs={"diffusion model": "b" * 64})
    with pytest.raises(StoreError, match="made with another teacher"):
        GradientStore(dense).gradients(dataset, "train", cpu, inputs={"teacher": "b" * 64})


def test_unfinished_and_missing_stores_are_refused(tmp_path, dataset, gradients, cpu):
    with pytest.raises(StoreError, match=r"2 of 14 shard files were not written, test/gradient/c/1/"):
        write_dense(tmp_path / "sbg.zarr", tmp_path / "work", dataset, gradients, skip=[("test", 1)])
    assert not (tmp_path / "sbg.zarr").exists()
    for path in (tmp_path / "work", tmp_path / "sbg.zarr"):
        with pytest.raises(StoreError, match=r"not a finished gradient store \(no manifest.json\); run its stage"):
            GradientStore(path).gradients(dataset, "train", cpu)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"checksum": 1, "files": {}}',
        "[]",
        "null",
        '{"checksum": 1, "x": NaN}',
        '{"checksum": 1, "x": "\\ud800"}',
    ],
)
def test_manifests_that_are_json_but_no_manifest_are_refused(dense, content):
    (dense / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="manifest"):
        read_manifest(dense)


def test_a_manifest_of_another_format_is_refused(dense):
    from pag_core.pipeline.artifacts import digest

    content = json.loads((dense / "manifest.json").read_text())
    content.pop("checksum")
    content["format"] = 3
    (dense / "manifest.json").write_text(json.dumps({**content, "checksum": digest(content)}))
    with pytest.raises(StoreError, match="has the format 3, this version reads 2"):
        read_manifest(dense)


def test_the_vanilla_store_holds_no_gradients(tmp_path, dataset, cpu):
    write_small_store(tmp_path / "none.zarr", dataset, "none", SmallStore("none"), {})
    assert read_manifest(tmp_path / "none.zarr")["kind"] == "none"
    with pytest.raises(StoreError, match="vanilla training"):
        GradientStore(tmp_path / "none.zarr").gradients(dataset, "train", cpu)


@pytest.mark.parametrize("split", ["train", "test"])
def test_representatives_give_r_minus_x(tmp_path, dataset, cpu, split):
    representatives = torch.rand(3, 1, 8, 8)
    write_small_store(
        tmp_path / "cm.zarr", dataset, "cm", SmallStore("representatives", {"representatives": representatives}), {}
    )
    found = GradientStore(tmp_path / "cm.zarr").gradients(dataset, split, cpu)(
        torch.tensor([4, 1]), torch.tensor([[0, 2], [1, 1]])
    )
    images = dataset.splits[split].images.double() / 255
    for b, row in enumerate((4, 1)):
        for k, label in enumerate(([0, 2], [1, 1])[b]):
            assert torch.allclose(found[b, k].double(), representatives[label].double() - images[row], atol=1e-6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_neighbors_give_r_minus_x_from_the_training_split(tmp_path, dataset, cpu, split):
    draws = torch.Generator().manual_seed(0)
    arrays = {
        f"{name}/neighbors": torch.randint(36, (len(dataset.splits[name]), 3), generator=draws, dtype=torch.int32)
        for name in ("train", "test")
    }
    write_small_store(tmp_path / "nn.zarr", dataset, "nn", SmallStore("neighbors", arrays), {})
    found = GradientStore(tmp_path / "nn.zarr").gradients(dataset, split, cpu)(
        torch.tensor([4, 1]), torch.tensor([[0, 2], [1, 1]])
    )
    train, images = (dataset.splits[name].images.double() / 255 for name in ("train", split))
    for b, row in enumerate((4, 1)):
        for k, label in enumerate(([0, 2], [1, 1])[b]):
            nearest = train[int(arrays[f"{split}/neighbors"][row, label])]
            assert torch.allclose(found[b, k].double(), nearest - images[row], atol=1e-6)


def test_a_flipped_byte_in_a_small_store_is_refused(tmp_path, dataset, cpu):
    path = tmp_path / "cm.zarr"
    write_small_store(
        path, dataset, "cm", SmallStore("representatives", {"representatives": torch.rand(3, 1, 8, 8)}), {}
    )
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        whole = file.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 2):
            flip(
                file,
                position if file.suffix != ".json" or whole[position : position + 1] not in b" \n" else position + 1,
            )
            with pytest.raises(StoreError, match="damaged"):
                GradientStore(path).gradients(dataset, "train", cpu)
            file.write_bytes(whole)


def test_a_shard_of_zeros_can_be_stored(tmp_path, dataset, gradients, cpu):
    gradients["train"][:8] = 0
    write_dense(tmp_path / "sbg.zarr", tmp_path / "work", dataset, gradients)
    found = GradientStore(tmp_path / "sbg.zarr").gradients(dataset, "train", cpu)(
        torch.tensor([0]), torch.tensor([[0, 1, 2]])
    )
    assert (found == 0).all()


def test_a_store_can_be_moved(dense, dataset, cpu, tmp_path):
    """DVC and users copy stores; nothing in one may name its place."""
    shutil.move(dense, tmp_path / "elsewhere.zarr")
    read_everything(tmp_path / "elsewhere.zarr", dataset, cpu)

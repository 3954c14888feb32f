"""Reduced precision in distillation: it is what it says, and what it changes is measured and bounded."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pag_core.compute.randomness import generator
from pag_core.errors import ParamsError
from pag_core.gradients.distillation_precision import direction_check, in_precision, require_direction
from pag_core.gradients.score_based import score_based_gradients
from tests.fixtures.samples import PARAMS, ROOT


@pytest.fixture
def predictor(dataset, make_predictor):
    return make_predictor(dataset)


def gradients(predictor, dataset, seed=1):
    images = dataset.splits["validation"].pixels()
    noise = torch.randn(images.shape, generator=generator("cpu", seed, "precision check"))
    return score_based_gradients(predictor, images, timestep=300, noise=noise)


def test_float32_changes_nothing(predictor, dataset):
    assert torch.equal(gradients(in_precision(predictor, precision="float32"), dataset), gradients(predictor, dataset))


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_reduced_precision_is_reduced_and_leaves_the_model_as_it_was(predictor, dataset, precision, error):
    exact = gradients(predictor, dataset)
    changed = in_precision(predictor, precision=precision)
    noised = predictor.noised(dataset.splits["validation"].pixels(), 300, torch.zeros(12, 1, 8, 8))
    labels = torch.zeros(12, dtype=torch.long)
    with torch.no_grad():
        found, expected = (model.predicted_noise(noised, 300, labels) for model in (changed, predictor))
    relative = ((found - expected).norm() / expected.norm()).item()
    assert error / 100 < relative < 20 * error
    # the last layer's output was not rounded
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.to(getattr(torch, precision)).float())
    assert gradients(changed, dataset).dtype == torch.float32
    assert torch.equal(gradients(predictor, dataset), exact)


def test_tf32_is_refused_on_the_cpu(predictor):
    with pytest.raises(ParamsError, match=r"sbg.precision tf32 is a mode of NVIDIA GPUs.*device is cpu; set float32"):
        in_precision(predictor, precision="tf32")


@pytest.mark.parametrize("compared", [2, 3])
def test_the_check_of_directions_against_numpy(predictor, dataset, monkeypatch, compared):
    monkeypatch.setattr("pag_core.gradients.score_based.COMPARED", compared)
    labels = dataset.splits["validation"].labels.numpy()
    own_and_next = np.arange(12)[:, None], (labels[:, None] + np.arange(compared)) % 3
    changed = in_precision(predictor, precision="bfloat16")
    options = {"timestep": 300, "seed": 1}
    found = direction_check(predictor, changed, dataset.splits["validation"], batch_size=5, **options)
    a, b = (
        gradients(model, dataset).double().numpy().reshape(12, 3, -1)[own_and_next] for model in (predictor, changed)
    )
    cosines = (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    assert found["precision_cosine_mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert found["precision_cosine_min"] == pytest.approx(cosines.min(), abs=1e-4)
    assert found["precision_cosine_min"] < found["precision_cosine_mean"] < 1 - 1e-7
    images = dataset.splits["validation"].pixels()
    noise = torch.randn(images.shape, generator=generator("cpu", 1, "precision check"))
    with torch.no_grad():
        none = predictor.predicted_noise(predictor.noised(images, 300, noise), 300, torch.full((12,), 3))
    ratios = np.linalg.norm(a, axis=2) / np.linalg.norm(none.double().numpy().reshape(12, 1, -1), axis=2)
    assert found["precision_difference_ratio"] == pytest.approx(ratios.mean(), rel=1e-4)
    assert found["precision_images"] == 12


GPU_MODES = """
import torch
from pag_core.compute.precision import products_in
from pag_core.compute.randomness import require_determinism

gpu, backends = torch.device("cuda"), torch.backends
older = lambda: [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
newer = lambda: [place.fp32_precision == "tf32" for place in (backends.cuda.matmul, backends.cudnn.conv)]
modes = lambda: print(*older(), *newer())
require_determinism(gpu)
modes()
with products_in("tf32", gpu):
    modes()
    with products_in("bfloat16", gpu):
        modes()
    modes()
modes()
"""


@pytest.mark.slow
@pytest.mark.parametrize("override", ["0", "1"])
def test_products_on_a_gpu_are_rounded_to_tf32_only_where_it_was_asked_for(override):
    """The switches are there without a GPU. In a process of its own: they are switches of the whole process.

    Some vendors' images of torch set the variable, and TF32 products of matrices are then torch's own default.
    """
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}
    command = [sys.executable, "-c", GPU_MODES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    full, rounded = "False False highest False False", "True True high True True"
    assert done.stdout.splitlines() == [full, rounded, full, rounded, full]


def measured(mean):
    return {
        "precision_cosine_mean": mean, "precision_cosine_min": 0.9, "precision_difference_ratio": 0.02,
        "precision_images": 64,
    }  # fmt: skip


@pytest.mark.parametrize("mean", [0.989, float("nan")])
def test_a_turned_direction_is_refused_with_a_remedy(mean):
    with pytest.raises(ParamsError) as caught:
        require_direction(measured(mean), "bfloat16", 0.99)
    for word in (
        "sbg.precision bfloat16",
        "0.90000",
        "64 images",
        "0.020",
        "sbg.min_cosine asks for 0.99",
        "tf32 or float32",
    ):
        assert word in str(caught.value)


def test_a_kept_direction_passes():
    require_direction(measured(0.99), "bfloat16", 0.99)


COMPILED = """
import sys
from pathlib import Path
import torch
sys.path[:0] = [{root!r}]
from pag_core.diffusion.network import NoisePredictor, architecture, build_network
from pag_core.errors import ParamsError
from pag_core.gradients.distillation_precision import in_precision
from pag_core.gradients.score_based import score_based_gradients
from pag_core.params.reading import load_params

torch.set_num_threads(1)
card = architecture(load_params(Path({params!r})).diffusion) | {{"channel_multipliers": [1], "residual_blocks": 1}}
torch.manual_seed(0)
network = build_network(card, (1, 8, 8), 3)
with torch.no_grad():
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
predictor = NoisePredictor({{**card, "class_names": ["a", "b", "c"]}}, network, torch.device("cpu"))
images, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
expected = score_based_gradients(predictor, images, timestep=300, noise=noise)
try:
    compiled = in_precision(predictor, precision="float32", compiled_for=(1, 8, 8))
except ParamsError as error:
    print("refused:", error)
    sys.exit()
found = score_based_gradients(compiled, images, timestep=300, noise=noise)
print("error", ((found - expected).norm() / expected.norm()).item())
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_compilation_gives_the_same_or_is_refused_without_a_compiler(tmp_path, compiler):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    if not compiler:
        environment |= {"PATH": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED.format(root=str(ROOT), params=str(PARAMS))], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    if compiler:
        assert float(done.stdout.split()[-1]) < 1e-5
    else:
        assert "refused: params.yaml: sbg.compile is true" in done.stdout and "set sbg.compile: false" in done.stdout

"""What is refused before an attack, and accuracy over batches."""

import math
import subprocess

import pytest
import torch
from torch import nn

from pag_core.errors import EvaluationRefused
from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.autoattack import run_autoattack
from pag_core.evaluation.foolbox_suite import run_foolbox
from pag_core.evaluation.masking import masking_checks
from pag_core.evaluation.pgd import pgd_accuracy
from pag_core.evaluation.preconditions import accuracy, correct, require_fit_for_attack
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.linear_models import linear
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT, Changed, labelled_images


class RoundedInput(nn.Module):
    """Nothing of the gradient is left: the image passes through integers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 255).to(torch.int64).to(torch.float32) / 255)


class Transposed(nn.Module):
    """Its input-gradients are laid out column by column."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.transpose(2, 3))


def wrapped(change):
    return lambda model, images, labels: (Changed(model, change).eval(), images, labels)


BREACHES = {
    "gradients in another order": (
        lambda m, x, y: (Transposed(m).eval(), x, y),
        "strides.*contiguous ones only",
    ),
    "train mode": (lambda m, x, y: (nn.Sequential(m, nn.Dropout(0.1)).train(), x, y), "train mode"),
    "a part in train mode": (
        lambda m, x, y: (nn.Sequential(m.eval(), nn.Identity().train()).requires_grad_(False), x, y),
        "train mode",
    ),
    "bf16 weights": (lambda m, x, y: (m.to(torch.bfloat16), x, y), "bfloat16"),
    "double weights": (lambda m, x, y: (m.double(), x, y), "float64"),
    "channels_last": (
        lambda m, x, y: (m, x.expand(-1, 2, -1, -1).contiguous(memory_format=torch.channels_last), y),
        "contiguous",
    ),
    "above one": (lambda m, x, y: (m, x * 255, y), "normalisation belongs inside"),
    "below zero": (lambda m, x, y: (m, x * 2 - 1, y), "normalisation belongs inside"),
    "uint8": (lambda m, x, y: (m, (x * 255).to(torch.uint8), y), "torch.uint8"),
    "double images": (lambda m, x, y: (m, x.double(), y), "torch.float64"),
    "flat images": (lambda m, x, y: (m, x.flatten(1), y), "B, C, H, W"),
    "int32 labels": (lambda m, x, y: (m, x, y.int()), "int64"),
    "one-hot labels": (lambda m, x, y: (m, x, nn.functional.one_hot(y)), "int64"),
    "too few labels": (lambda m, x, y: (m, x, y[1:]), "int64"),
    "randomised": (wrapped(lambda z, x: z + 1e-3 * torch.randn_like(z)), "randomised"),
    "softmax": (wrapped(lambda z, x: z.softmax(1)), "probabilities"),
    "NaN logits": (wrapped(lambda z, x: z * math.nan), "not finite"),
    "one infinite logit": (wrapped(lambda z, x: z.index_fill(0, torch.tensor([1]), math.inf)), "not finite"),
    "zero gradients": (wrapped(lambda z, x: z.detach() + 0 * x.sum()), "zero for every image"),
    "no gradient at all": (lambda m, x, y: (RoundedInput(m).eval(), x, y), "differentiable"),
    "NaN images": (lambda m, x, y: (m, x.clone().fill_(math.nan), y), "finite|lie in"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_every_breach_is_refused(breach):
    model = linear()
    images, labels = labelled_images(model, 5)
    require_fit_for_attack(model, images, labels, batch_size=5)
    change, words = BREACHES[breach]
    with pytest.raises(EvaluationRefused, match=words):
        require_fit_for_attack(*change(model, images, labels), batch_size=5)


def test_autocast_and_inference_mode_are_refused():
    model = linear()
    images, labels = labelled_images(model, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(EvaluationRefused, match="autocast"):
        require_fit_for_attack(model, images, labels, batch_size=5)
    with torch.inference_mode(), pytest.raises(EvaluationRefused, match="inference mode"):
        require_fit_for_attack(model, images, labels, batch_size=5)
    with torch.no_grad():
        require_fit_for_attack(model, images, labels, batch_size=5)


def test_products_that_are_rounded_are_refused(monkeypatch):
    monkeypatch.setattr(
        "pag_core.evaluation.preconditions.rounded_products", lambda device: [f"products on {device.type}"]
    )
    model = linear()
    with pytest.raises(EvaluationRefused, match=r"products on cpu.*rounded.*float32"):
        require_fit_for_attack(model, *labelled_images(model, 5), batch_size=5)


ROUNDED_PRODUCTS = """
import torch
from torch import backends
from torch._subclasses.fake_tensor import FakeTensorMode
from pag_core.errors import EvaluationRefused
from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.autoattack import run_autoattack
from pag_core.evaluation.preconditions import require_fit_for_attack

def refused(device):
    with FakeTensorMode():
        images = torch.empty(5, 1, 4, 4, device=device)
    try:
        require_fit_for_attack(torch.nn.Flatten().eval(), images, torch.zeros(5, dtype=torch.int64), batch_size=5)
    except EvaluationRefused as error:
        print(error)
    except Exception as error:  # what has no content cannot be looked at any further
        print("passed")

backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
refused("cuda"); refused("cpu")
backends.cuda.matmul.allow_tf32 = True
refused("cuda"); refused("cpu")
backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = False, True
refused("cuda")
backends.cudnn.allow_tf32 = False
torch.set_float32_matmul_precision("medium")
refused("cuda"); refused("cpu")
torch.set_float32_matmul_precision("highest")
refused("cuda"); refused("cpu")
backends.cuda.matmul.fp32_precision = "tf32"
refused("cuda")
"""


@pytest.mark.slow
def test_every_switch_of_torch_that_rounds_products_is_seen():
    """The switches are there without a GPU, and so are tensors without content. In a process of its own, as they are global."""
    command = [f"{forks()}/python", "-c", ROUNDED_PRODUCTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line if line == "passed" else line.split(" would")[0] for line in done.stdout.splitlines()]
    matrices, convolutions = "matrix products in tf32", "convolutions in tf32"
    assert found == [
        "passed", "passed", matrices, "passed", convolutions, matrices, "matrix products in bf16", "passed", "passed",
        matrices,
    ]  # fmt: skip


def in_batches(model):
    """The model, and a list of how many images it sees at once."""
    sizes = []
    return Changed(model, lambda logits, images: sizes.append(len(images)) or logits).eval(), sizes


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_correct_counts_over_batches(batch_size):
    model, sizes = in_batches(linear())
    images, labels = labelled_images(linear(), 23)
    labels[[2, 22]] = (labels[[2, 22]] + 1) % 3
    expected = torch.ones(23, dtype=torch.bool)
    expected[[2, 22]] = False
    assert torch.equal(correct(model, images, labels, batch_size=batch_size), expected)
    assert accuracy(model, images, labels, batch_size=batch_size) == 21 / 23
    assert sum(sizes) == 2 * 23 and max(sizes) == min(batch_size, 23)


def test_no_more_images_at_once_than_were_asked_for():
    """Batches in which the model is sure of every image come first: their gradients are zero, those of the last are not."""
    sure = linear(scale=1e4)
    images, labels = labelled_images(sure, 12)
    labels[11] = (labels[11] + 1) % 3
    model, sizes = in_batches(sure)
    require_fit_for_attack(model, images, labels, batch_size=5)
    assert sizes == [5, 5, 5, 5, 2, 2, 5, 5, 2]
    labels[11] = (labels[11] + 2) % 3
    with pytest.raises(EvaluationRefused, match="zero for every image"):
        require_fit_for_attack(model, images, labels, batch_size=5)


@pytest.mark.parametrize("evaluation", ["apgd", "pgd", "autoattack", "foolbox", "masking"])
def test_every_evaluation_refuses_an_unfit_model_before_it_attacks(evaluation, make_params, tmp_path, monkeypatch):
    """One that gives other answers each time, which no attack by itself would notice."""
    plain = linear(classes=4)
    images, labels = labelled_images(plain, 5)
    model = Changed(plain, lambda logits, _: logits + 1e-3 * torch.randn_like(logits)).eval()
    params, folder = make_params({"source": "none"}), RunFolder(tmp_path)
    options = {"seed": 1, "folder": folder, "who": "test"}
    radii = {"radii": {"L2": ["0.1"]}, "seed": 1, "steps": 1, "batch_size": 5}
    evaluations = {
        "apgd": lambda: apgd_accuracy(model, images, labels, classes=4, **radii),
        "pgd": lambda: pgd_accuracy(model, images, labels, **radii),
        "autoattack": lambda: run_autoattack(model, images, labels, classes=4, params=params.autoattack, **options),
        "foolbox": lambda: run_foolbox(model, images, labels, params=params.foolbox, **options),
        "masking": lambda: masking_checks(
            model, plain, images, labels, classes=4, params=params.masking, seed=1, folder=folder
        ),
    }
    with pytest.raises(EvaluationRefused, match="two forward passes differ"):
        evaluations[evaluation]()
    assert not list(tmp_path.iterdir())

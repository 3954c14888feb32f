"""Every architecture of the paper: its published size, the images it takes, and what it refuses."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg11_bn, vgg13_bn, vgg16_bn

from pag_core.classifiers.activations import ACTIVATIONS
from pag_core.classifiers.architectures import ARCHITECTURES as RECORDS
from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.building import load_classifier, save_classifier
from pag_core.errors import ParamsError
from pag_core.gradient_store.store import RepresentativeGradients
from pag_core.params.values import ARCHITECTURE_NAMES
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.input_gradient_loops import EACH_ARCHITECTURE
from tests.fixtures.samples import ARCHITECTURES, ROOT, objective_terms

each_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)


def build(arch, image_shape=(3, 32, 32), classes=10, activation=None, **options):
    return build_classifier(
        arch, **{"width": None, **options}, activation=activation, image_shape=image_shape, classes=classes
    )


def small(arch, image_shape=(3, 32, 32), classes=4, **options):
    torch.manual_seed(0)
    return build(arch, image_shape, classes, **{**ARCHITECTURES[arch][0], **options})


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def convolution(channels_in, channels_out, side):
    return channels_in * channels_out * side * side


def wide_resnet_parameters(depth, factor, classes):
    """From the table of Zagoruyko and Komodakis (2016): groups of (depth - 4) / 6 blocks of two 3x3 convolutions."""
    total, before = convolution(3, 16, 3), 16
    for group in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            total += 2 * before + convolution(before, group, 3) + 2 * group + convolution(group, group, 3)
            total += convolution(before, group, 1) if before != group else 0
            before = group
    return total + 2 * before + before * classes + classes


def vit_parameters(side, depth=7, width=384, hidden=384, classes=10):
    """Norm, queries-keys-values and projection, norm and two layers in each block; 64 patches and a class token."""
    block = 2 * width + 4 * (width * width + width) + 2 * width + 2 * width * hidden + width + hidden
    embedding = 3 * (side // 8) ** 2 * width + width + width + 65 * width
    return embedding + depth * block + 2 * width + width * classes + classes


@pytest.mark.parametrize("side", [32, 64, 96])
def test_published_parameter_counts(side):
    with torch.device("meta"):
        sizes = {arch: parameters(build(arch, (3, side, side))) for arch in ARCHITECTURES}
    assert sizes["resnet18"] == 11_173_962  # of the usual ResNet-18 for CIFAR-10
    assert sizes["wrn_34_10"] == wide_resnet_parameters(34, 10, 10)
    assert sizes["vit"] == vit_parameters(side)
    if side == 32:
        assert round(sizes["wrn_34_10"] / 1e6, 1) == 46.2
        assert round(sizes["vit"] / 1e6, 1) == 6.3  # Appendix G.2
        assert round(sizes["mixer"] / 1e6, 2) == 1.13
    with torch.device("meta"):
        originals = {"vgg11": vgg11_bn(), "vgg13": vgg13_bn(), "vgg16": vgg16_bn()}
    for arch, original in originals.items():
        assert sizes[arch] == parameters(original.features) + 512 * 10 + 10


@pytest.mark.parametrize(("arch", "gflop"), [("resnet18", 1.111), ("vit", 0.853), ("wrn_34_10", 13.3)])
def test_published_work_of_a_forward_pass(arch, gflop):
    """Two operations per multiply-add, an image of 32x32 pixels."""
    with torch.device("meta"):
        classifier = build(arch).eval()
        with FlopCounterMode(display=False) as counter:
            classifier(torch.empty(1, 3, 32, 32))
    decimals = len(str(gflop).split(".")[1])
    assert round(counter.get_total_flops() / 1e9, decimals) == gflop


# --- what they take


@each_architecture
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 96])
def test_images_of_three_sizes(arch, channels, side):
    images = torch.rand(2, channels, side, side)
    with torch.no_grad():
        logits = small(arch, (channels, side, side)).eval()(images)
    assert logits.shape == (2, 4) and torch.isfinite(logits).all()
    assert (logits[0] != logits[1]).all()


@pytest.mark.parametrize("arch", ["vit", "mixer"])
@pytest.mark.parametrize(
    ("sides", "patch_size", "patches"),
    [((32, 32), None, 64), ((64, 64), None, 64), ((96, 96), None, 64), ((8, 8), None, 64), ((32, 32), 8, 16),
     ((28, 28), 4, 49), ((32, 64), None, 128), ((12, 20), 4, 15)],
)  # fmt: skip
def test_patches(arch, sides, patch_size, patches):
    classifier = small(arch, (3, *sides), patch_size=patch_size)
    stem = classifier.network.patch_embed if arch == "vit" else classifier.network.stem
    with torch.no_grad():
        assert stem(torch.rand(1, 3, *sides)).shape[1] == patches
        assert classifier(torch.rand(2, 3, *sides)).shape == (2, 4)


@each_architecture
def test_none_works_in_place_and_each_has_the_activation_asked_for(arch):
    for activation, kind in ((None, None), ("relu", nn.ReLU), ("silu", nn.SiLU), ("gelu", nn.GELU)):
        modules = list(small(arch, activation=activation).modules())
        assert not [module for module in modules if getattr(module, "inplace", False)]
        kinds = {type(module) for module in modules if isinstance(module, nn.ReLU | nn.SiLU | nn.GELU)}
        assert kinds == {kind or ACTIVATIONS[RECORDS[arch].activation]}


@each_architecture
def test_a_fresh_network_has_input_gradients_that_can_be_differentiated(arch):
    """Eq. 5 divides by the norm of each class's input-gradient, and its own gradient is a second derivative."""
    side = ARCHITECTURES[arch][1]
    classifier = small(arch, (3, side, side)).double().train()
    images = torch.rand(3, 3, side, side, dtype=torch.float64, requires_grad=True)
    logits = classifier(images)
    for label in range(4):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), images, create_graph=True)
        norms = gradient.flatten(1).norm(dim=1)
        assert (norms > 1e-6).all(), f"class {label}"
        classifier.zero_grad()
        F.normalize(gradient.flatten(1), dim=1)[:, ::3].sum().backward(retain_graph=True)
        touched = [p.grad for p in classifier.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert len(touched) > 3 and all(torch.isfinite(gradient).all() for gradient in touched)


@pytest.mark.parametrize("arch", EACH_ARCHITECTURE)
def test_the_objective_at_96_pixels_against_autograd_one_image_and_class_at_a_time(arch):
    """STL-10's images; in eval mode no image depends on another."""
    classifier = small(arch, (3, 96, 96)).eval()
    images, labels, chosen = torch.rand(2, 3, 96, 96), torch.tensor([3, 0]), torch.tensor([[0, 2], [3, 1]])
    targets = torch.randn(2, 2, 3, 96, 96)
    terms = objective_terms(
        classifier, images, labels, chosen, targets, weight=1.0, classes=4, output="log_softmax", scaling="drawn",
        differentiation="adjoint", batch_norm="frozen",
    )  # fmt: skip
    expected = 0.0
    for image, classes, wanted in zip(images, chosen, targets, strict=True):
        for label, target in zip(classes, wanted, strict=True):
            pixels = image[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(classifier(pixels).log_softmax(1)[0, label], pixels)
            expected += (1 - F.cosine_similarity(gradient.flatten(), target.flatten(), dim=0).item()) / 2
    assert terms.alignment.item() == pytest.approx(expected, abs=1e-4)
    terms.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in classifier.parameters())


# --- what they compute


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_small_resnet_against_one_written_out(depth):
    """SiLU before each convolution of a block; from the second stage on half the side and twice the channels."""
    classifier = small("small_resnet", width=4, depth=depth).double().eval()
    layers = list(classifier.network)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    features = F.conv2d(images * 2 - 1, layers[0].weight, layers[0].bias, padding=1)
    for stage, block in enumerate(layers[1 : 1 + depth]):
        stride = 2 if stage else 1
        inner = F.conv2d(F.silu(features), block.first.weight, block.first.bias, stride=stride, padding=1)
        inner = F.conv2d(F.silu(inner), block.second.weight, block.second.bias, padding=1)
        skip = F.conv2d(features, block.skip.weight, block.skip.bias, stride=stride) if stage else features
        features = skip + 0.3 * inner
        assert features.shape[1:] == (4 << stage, 16 >> stage, 16 >> stage)
    expected = F.silu(features).mean((2, 3)) @ layers[-1].weight.T + layers[-1].bias
    torch.testing.assert_close(classifier(images), expected, rtol=1e-10, atol=1e-7)


def test_the_wide_resnet_against_one_written_out():
    """BN-ReLU before each convolution; the shortcut leaves the block's first activation where the shape changes."""
    classifier = small("wrn_34_10", width=2, depth=16).double().eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in classifier.named_buffers():
            if "running" in name:
                buffer += torch.rand_like(buffer)
    layers = list(classifier.network)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def activated(features, norm):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        return (features * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    features = F.conv2d(images * 2 - 1, layers[0].weight, padding=1)
    widths, blocks = (32, 64, 128), layers[1:7]
    for number, block in enumerate(blocks):
        first, stride = number % 2 == 0, 2 if number in (2, 4) else 1
        inner = activated(features, block.first_norm)
        skip = F.conv2d(inner, block.skip.weight, stride=stride) if first else features
        inner = activated(F.conv2d(inner, block.first.weight, stride=stride, padding=1), block.second_norm)
        features = skip + F.conv2d(inner, block.second.weight, padding=1)
        assert features.shape[1:] == (widths[number // 2], 32 >> number // 2, 32 >> number // 2)
    pooled = activated(features, layers[7]).mean((2, 3))
    expected = pooled @ layers[-1].weight.T + layers[-1].bias
    torch.testing.assert_close(classifier(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("arch", "original"), [("vgg11", vgg11_bn), ("vgg13", vgg13_bn), ("vgg16", vgg16_bn)])
def test_vgg_has_the_convolutions_of_torchvision(arch, original):
    classifier = build(arch).eval()
    with torch.device("meta"):
        features = original().features
    features.to_empty(device="cpu").load_state_dict(classifier.network[0].state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = classifier.network[-1](features.eval()(images * 2 - 1).mean((2, 3)))
        torch.testing.assert_close(classifier(images), expected)
        assert classifier(images).abs().max() > 0


# --- what they refuse


@pytest.mark.parametrize(
    ("arch", "image_shape", "options", "message"),
    [
        ("vgg11", (3, 31, 32), {}, r"arch is vgg11, .*32 or more pixels a side; the dataset's are 31x32: choose another"),
        ("vgg16", (1, 8, 8), {}, r"arch is vgg16, .*8x8.*prepare.image_size"),
        ("vit", (3, 30, 30), {}, r"classifier.patch_size is null, .*30x30 pixels: choose one of 1, 2, 3, 5, 6, 10, 15, 30"),
        ("mixer", (1, 28, 28), {}, r"classifier.patch_size is null, .*28x28 pixels: choose one of 1, 2, 4, 7, 14, 28"),
        ("vit", (3, 32, 32), {"patch_size": 5}, r"classifier.patch_size is 5; .*32x32 pixels: choose one of 1, 2, 4, 8,"),
        ("mixer", (3, 12, 20), {"patch_size": 3}, r"classifier.patch_size is 3; .*12x20 pixels: choose one of 1, 2, 4$"),
        ("vit", (3, 32, 32), {"width": 100}, r"classifier.width is 100; the 12 heads of vit need a multiple of 12"),
        ("mixer", (3, 32, 32), {"width": 1}, r"classifier.width is 1; mixer needs 2 or more"),
        ("wrn_34_10", (3, 32, 32), {"depth": 33}, r"classifier.depth is 33; .*6n \+ 4.*34"),
        ("wrn_34_10", (3, 32, 32), {"depth": 4}, r"classifier.depth is 4; "),
        ("wrn_34_10", (3, 32, 32), {"patch_size": 4}, r"classifier.patch_size is 4; wrn_34_10 has no option patch_size"),
        ("vgg11", (3, 32, 32), {"depth": 8}, r"classifier.depth is 8; vgg11 has no option depth: give null"),
        ("small_resnet", (3, 32, 32), {"patch_size": 4}, r"classifier.patch_size is 4; small_resnet has no option patch_size"),
        ("resnet18", (3, 32, 32), {"width": 32}, r"classifier.width is 32; resnet18 has 64"),
        ("resnet18", (3, 32, 32), {"patch_size": 4}, r"classifier.patch_size is 4; resnet18 has no option patch_size"),
        ("vit_tiny", (3, 32, 32), {}, f"arch 'vit_tiny' is not one of: {', '.join(RECORDS)}"),
    ],
)  # fmt: skip
def test_refusals_name_value_place_and_remedy(arch, image_shape, options, message):
    with pytest.raises(ParamsError, match=message) as caught:
        build(arch, image_shape, **options)
    assert str(caught.value).startswith("params.yaml: ")


def test_resnet18_takes_its_own_width_spelled_out():
    assert parameters(build("resnet18", width=64)) == 11_173_962


# --- the chain from params.yaml to the disk and back


def test_params_and_builder_know_the_same_architectures(make_params):
    assert set(RECORDS) == set(ARCHITECTURE_NAMES) == set(ARCHITECTURES)
    for arch in RECORDS:
        assert make_params({"arch": arch}).arch == arch


@each_architecture
def test_trained_saved_and_loaded_it_answers_the_same(tmp_path, make_dataset, make_params, cpu, arch):
    small_options, side = ARCHITECTURES[arch]
    shape = (3, side, side)
    dataset = make_dataset(classes=3, shape=shape, train=4, validation=1, test=2)
    changes = {"arch": arch, "train.epochs": 1, "train.batch_size": 6, "train.learning_rate": 1e-4}
    changes |= {"objective.classes_per_step": 1}
    changes |= {f"classifier.{name}": value for name, value in small_options.items()}
    params = make_params(changes)
    options = params.classifier.model_dump()
    torch.manual_seed(3)
    classifier = build_classifier(params.arch, **options, image_shape=dataset.image_shape, classes=dataset.classes)
    targets = RepresentativeGradients(torch.rand(3, *shape), dataset.splits["train"])
    trainer = Trainer(
        classifier=classifier, train=dataset.splits["train"], classes=3, params=params.train,
        term=AlignmentTerm(targets, 1.0, params.objective), seed=1, device=cpu, folder=RunFolder(tmp_path / "run"),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    history = trainer.run(tmp_path / "curves")
    assert 0 < history[-1]["alignment"] < 6
    assert any(not torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    # as loaded ones are: a product whose weights take gradients may have another kernel, with other rounding
    classifier.eval().requires_grad_(False)
    save_classifier(tmp_path / "c", classifier, arch=arch, options=options, dataset=dataset, provenance={})
    again, saved = load_classifier(tmp_path / "c", dataset, cpu)
    images = dataset.splits["test"].pixels()
    assert torch.equal(again(images), classifier(images)) and saved.card["options"] == options


@pytest.mark.slow
def test_the_default_data_and_network_load_neither_torchvision_nor_timm():
    """They cost seconds, which the default run would pay in every stage."""
    program = (
        "import sys; from pathlib import Path; from pag_core.classifiers.building import build_classifier as build\n"
        "from pag_core.datasets.loading import load_raw; from pag_core.params.reading import load_params\n"
        "load_raw(load_params(Path('tests/params.yaml')), Path())\n"
        "for arch, options in (('small_resnet', {}), ('wrn_34_10', {'depth': 10})):\n"
        "    build(arch, **{'width': 1, **options}, activation=None, image_shape=(1, 8, 8), classes=2)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torchvision', 'timm'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

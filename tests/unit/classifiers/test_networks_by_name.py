"""Networks of the user's and of timm by their names: built as they are by hand, and refused with what to do."""

import pytest
import timm
import torch
from torch import nn

from pag_core.classifiers.architectures import build_classifier
from pag_core.errors import ParamsError
from tests.fixtures.own_folder import BLOCKS, NETWORKS

SHAPE = (2, 8, 8)


def build(arch, options=None, *, image_shape=SHAPE, seed=3, **given):
    torch.manual_seed(seed)
    given = {"width": None, "activation": None, **given}
    return build_classifier(arch, image_shape=image_shape, classes=5, options=options, **given)


def same(network, expected):
    """Whether two networks have the same weights by the same names."""
    found, wanted = network.state_dict(), expected.state_dict()
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in found)


def by_hand(width=4):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"width": 6}])
def test_a_network_of_the_users_is_what_its_function_returns(own, options):
    """It is told classes and channels, and is tried without moving its statistics or the generator that drew it."""
    own({"networks.py": NETWORKS, "blocks.py": BLOCKS})
    classifier, expected = build("own.networks:convnet", options), by_hand(**options)
    assert same(classifier.network, expected) and classifier.network.training
    after = torch.rand(3)
    by_hand(**options)
    assert torch.equal(torch.rand(3), after)
    images = torch.rand(4, *SHAPE)
    assert torch.equal(classifier.eval()(images), expected.eval()(2 * images - 1))


CLASS = """
from torch import nn


class Linear(nn.Sequential):
    def __init__(self, image_shape, classes):
        channels, height, width = image_shape
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, classes))
"""


def test_a_class_in_a_folder_will_do(own):
    own({"mine/flat.py": CLASS})
    network = build("own.mine.flat:Linear").network
    assert type(network).__name__ == "Linear" and network[1].weight.shape == (5, 128)


def returning(expression):
    return f"""
import torch
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return {expression}


def net():
    return Net()
"""


REFUSED = [
    # arch, code, options, the message
    ("own.absent:net", "", {}, r"own/absent\.py is not there; write it, and `git add own/absent\.py`"),
    ("own.networks:net", "def other(): ...", {}, r"own/networks\.py has no function or class net; it has: other"),
    ("own.networks:net", "net = 3", {}, "has no function or class net; it has: none"),
    ("own.networks:net", "import not_installed_anywhere", {}, "imports not_installed_anywhere, which is not there"),
    ("own.networks:net", "def net(classes, depth): ...", {}, r"takes \(classes, depth\): missing .*'depth'"),
    (
        "own.networks:net",
        "def net(classes): ...",
        {"depth": 3},
        "unexpected keyword argument 'depth'.*classifier.options",
    ),
    ("own.networks:net", "def net(classes): return 3", {}, "returns int: it must return a torch.nn.Module"),
    (
        "own.networks:net",
        returning("(x, x)"),
        {},
        r"returns a tuple of .*of which 0 may be the logits \[2, 5\]; wrap it",
    ),
    ("own.networks:net", returning("x.flatten(1)[:, :4]"), {}, r"returns \[2, 4\] for 2 images of 5 classes"),
    (
        "own.networks:net",
        returning("nn.functional.conv2d(x, torch.ones(1, 3, 3, 3))"),
        {},
        "does not take images of 2x8x8.*prepare.image_size",
    ),
    ("timm:resnet_10", "", {}, r"has no model resnet_10 \(did you mean"),
    ("timm:resnet10t", "", {"pretrained": True}, "pretrained is no option"),
    ("timm:resnet10t", "", {"widht": 3}, "cannot build arch timm:resnet10t .*unexpected keyword argument 'widht'"),
    ("timm:halonet_h1", "", {}, "(cannot build arch|does not take images).*AssertionError"),
    ("timm:gcvit_xxtiny", "", {}, "cannot build arch timm:gcvit_xxtiny for images of 2x8x8 .*by zero"),
    ("small_resnet", "", {"width": 3}, "options.width is 3; small_resnet takes none"),
    ("resnet", "", {}, "arch 'resnet' is not one of: small_resnet"),
]


@pytest.mark.parametrize(("arch", "code", "options", "message"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_to_do(own, arch, code, options, message):
    own({"networks.py": code})
    with pytest.raises(ParamsError, match=f"(?s){message}"):
        build(arch, options)


@pytest.mark.parametrize("arch", ["own.networks:convnet", "timm:resnet10t"])
def test_the_projects_own_options_are_not_theirs(own, arch):
    own({"networks.py": NETWORKS, "blocks.py": BLOCKS})
    with pytest.raises(ParamsError, match=r"width is 3; what .* takes is in classifier\.options"):
        build(arch, width=3)


@pytest.mark.parametrize(
    ("name", "options", "known"),
    [
        ("resnet10t", {}, {}),
        ("resnet10t", {"stem_width": 16}, {"stem_width": 16}),
        # a transformer is built for one size of image
        ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 1}, {"img_size": (8, 8), "patch_size": 4, "depth": 1}),
    ],
)
def test_a_network_of_timm_is_as_timm_builds_it(name, options, known):
    found = build(f"timm:{name}", options).network
    torch.manual_seed(3)
    assert same(found, timm.create_model(name, num_classes=5, in_chans=2, **known))


@pytest.mark.parametrize("returned", ["{'logits': x.flatten(1)[:, :5], 'features': x}", "(x, x.flatten(1)[:, :5])"])
def test_logits_among_other_things_are_taken_where_it_is_plain(own, returned):
    own({"networks.py": returning(returned)})
    images = torch.rand(3, *SHAPE)
    assert torch.equal(build("own.networks:net")(images), (2 * images - 1).flatten(1)[:, :5])

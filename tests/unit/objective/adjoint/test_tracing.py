"""Which errors of a network are its own, and which say that its operations cannot be listed."""

import pytest
import torch
from torch import nn

from pag_core.errors import AdjointUnavailable
from pag_core.objective.input_gradient import input_gradients


class Faulty(nn.Module):
    """A network with a bug of its own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, images):
        if images.shape[-1] != 5:
            raise ValueError("the network's own bug")
        return self.head(images.flatten(1))


class OnValues(nn.Module):
    """A network whose operations depend on values; it has batch statistics and random units as well."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(48, 3)

    def forward(self, images):
        features = self.drop(self.norm(images)).flatten(1)
        return self.head(features) * (2 if features.sum().item() > 0 else 3)


def differentiate(network):
    images, classes = torch.rand(2, 3, 4, 4), torch.tensor([[0, 1], [1, 2]])
    return input_gradients(network, images, classes, output="logit", differentiation="adjoint", batch_norm="frozen")


def test_a_network_s_own_error_is_raised_as_it_is():
    with pytest.raises(ValueError, match="the network's own bug") as raised:
        differentiate(Faulty())
    assert raised.value.__cause__ is None and raised.value.__context__ is None


def test_a_mismatch_of_shapes_inside_the_network_is_no_matter_of_tracing():
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|same reduction dim"):
        differentiate(nn.Sequential(nn.Flatten(), nn.Linear(47, 3)))


def test_a_network_that_cannot_be_listed_is_refused_and_left_as_it_was():
    network = OnValues()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(AdjointUnavailable, match=r"OnValues cannot be listed.*objective\.differentiation: autograd"):
        torch.manual_seed(0)
        differentiate(network)
    found = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(2, 3, 4, 4)
    assert torch.equal(found, torch.rand(3))
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name]), name


class Overwriting(nn.Module):
    """A network that overwrites the first channel of `base(features)`, and reads the `whole` afterwards or the channel."""

    def __init__(self, *, of_image=False, whole=False):
        super().__init__()
        self.stem, self.head, self.of_image, self.whole = (
            nn.Conv2d(3, 3, 1),
            nn.Linear(48 if whole else 16, 3),
            of_image,
            whole,
        )

    def forward(self, images):
        features = images if self.of_image else self.stem(images)
        part = features[:, :1]
        part.add_(1)
        return self.head((features if self.whole else part).flatten(1))


def test_a_part_that_nothing_else_reads_may_be_overwritten():
    torch.manual_seed(0)
    differentiate(Overwriting())


@pytest.mark.parametrize("options", [{"whole": True}, {"of_image": True}])
def test_a_part_of_what_is_read_besides_may_not(options):
    with pytest.raises(AdjointUnavailable, match="overwrites a part or a view"):
        differentiate(Overwriting(**options))

"""Processes of a user's own that share a batch: the module under DistributedDataParallel is the whole batch's loss."""

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from pag_core import PAGLoss, pag_loss

DRAWS = torch.Generator().manual_seed(1)
IMAGES, LABELS = torch.rand(8, 1, 8, 8, generator=DRAWS), torch.arange(8) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))


def targets():
    return torch.randn(8, 3, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def share(rank, folder):
    """One of two processes, each of which has half of the batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(PAGLoss(network()))
    rows = slice(4 * rank, 4 * rank + 4)
    model(IMAGES[rows], LABELS[rows], targets()[rows]).loss.backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], folder / "gradients.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_halves_are_the_batch(tmp_path):
    spawn(share, (tmp_path,), nprocs=2)
    whole = network()
    pag_loss(whole, IMAGES, LABELS, targets()).loss.backward()
    for found, parameter in zip(torch.load(tmp_path / "gradients.pt"), whole.parameters(), strict=True):
        assert (found - parameter.grad).norm() < 1e-5 * parameter.grad.norm()

"""The module under Lightning learns to the byte what the function learns in a bare loop."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pag_core import Indexed, PAGLoss, class_mean_targets, pag_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("pytorch_lightning")


class Aligned(lightning.LightningModule):
    def __init__(self, network, targets):
        super().__init__()
        self.objective, self.targets = PAGLoss(network, weight=1.5, output="logit"), targets

    def training_step(self, batch, number):
        x, y, index = batch
        return self.objective(x, y, *self.targets.draw(index, 2)).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_learns_what_a_bare_loop_learns(dataset):
    train = dataset.splits["train"]
    data = TensorDataset(train.pixels(), train.labels)
    targets = class_mean_targets(*data.tensors)
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))
    bare, under_lightning = copy.deepcopy(first), copy.deepcopy(first)
    loader = DataLoader(Indexed(data), batch_size=10)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(bare.parameters(), 0.1)
    for x, y, index in loader:
        loss, _ = pag_loss(bare, x, y, *targets.draw(index, 2), weight=1.5, output="logit")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(Aligned(under_lightning, targets), loader)
    assert not torch.equal(bare[0].weight, first[0].weight)
    for (name, one), other in zip(bare.state_dict().items(), under_lightning.state_dict().values(), strict=True):
        assert torch.equal(one, other), name

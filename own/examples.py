"""Two sources of target gradients to start from: a trained network's input-gradients, and the same averaged over noise."""

from pathlib import Path

import torch

from pag_core.exchange.standalone.loading import load
from pag_core.objective.input_gradient import input_gradients


class OfNetwork:
    """Gradients of log p(c | x) of the trained network in the folder `reads`: a robust teacher's, the idea of JARN.

    With `noise`, the standard deviation of Gaussian noise on pixels in [0, 1], they are averages over so many `draws` of it
    (SmoothGrad).
    """

    def __init__(self, reads: Path, noise: float = 0.0, draws: int = 1) -> None:
        self.network = load(reads)
        self.noise, self.draws = noise, draws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        network, total = self.network.to(images.device), torch.zeros(())
        for _ in range(self.draws):
            _, gradients = input_gradients(
                network,
                images + self.noise * torch.randn_like(images),
                classes,
                output="log_softmax",
                differentiation="adjoint",
                batch_norm="frozen",
                create_graph=False,
            )
            total = total.to(images.device) + gradients / self.draws
        return total

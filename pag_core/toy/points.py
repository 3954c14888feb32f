"""The toy dataset of Section 5.1 (Appendix G.1): two classes of points on the line x2 = 2 x1, in three clusters each."""

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split

# x1 at the centres of each class's modes; the classes alternate along the line
MODES = ((-50.0, -10.0, 30.0), (-30.0, 10.0, 50.0))
SLOPE = 2.0
CLASSES = len(MODES)


class Points(Split):
    """Points of the plane, carried as images of two channels and one pixel: float32 [N, 2, 1, 1], of any value."""

    def to(self, device: torch.device) -> "Points":
        """The points on `device`."""
        return Points(self.images.to(device), self.labels.to(device))

    def pixels(self, indices: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """The points of `indices` as they are: float32 [N, 2, 1, 1], contiguous."""
        return self.images[indices].contiguous()


def toy_points(per_mode: int, *, seed: int, split: str) -> Points:
    """`per_mode` points of each of the six modes, x1 of unit variance around its centre, drawn by `seed` for `split`."""
    centres = torch.tensor(MODES)
    noise = torch.randn(*centres.shape, per_mode, generator=generator("cpu", seed, "toy points", split))
    x1 = (centres[..., None] + noise).flatten()
    labels = torch.arange(CLASSES).repeat_interleave(len(x1) // CLASSES)
    return Points(torch.stack([x1, SLOPE * x1], dim=1)[..., None, None], labels)

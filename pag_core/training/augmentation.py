"""Augmentation of an image together with its target gradients, drawn for each sample (Appendix G.2)."""

import torch

PADDING = 4


def draw_crops_and_flips(batch: int, draws: torch.Generator) -> torch.Tensor:
    """For each sample the top and left of a crop in [-4, 4] and whether it is flipped: int64 [B, 3]."""
    corners = torch.randint(0, 2 * PADDING + 1, (2, batch, 1), generator=draws, device=draws.device) - PADDING
    flipped = torch.rand(batch, 1, generator=draws, device=draws.device) < 0.5
    return torch.cat([*corners, flipped], dim=1)


class CropsAndFlips:
    """Crop (zero padding of 4 pixels) and horizontal flip of each sample, the same for image and target gradients.

    A classifier's gradient J at the augmented image A x and the target g of the image x relate as <A'J, g> = <J, A g>:
    moving g with the image gives the dot product of differentiating through A back to x (Eq. 5). Norms differ at the
    borders: |A'J| is that of J where `mask` (bool [B, 1, H, W]) is True, that is, apart from the zeros around the image;
    |g| is that before the crop.
    """

    def __init__(self, drawn: torch.Tensor, height: int, width: int) -> None:
        """`drawn` int64 [B, 3] as `draw_crops_and_flips` returns it, on the device of the images."""
        top, left, flipped = drawn.split(1, dim=1)
        device = drawn.device
        rows = top + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(len(drawn), width)
        columns = left + torch.where(flipped.bool(), width - 1 - columns, columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        self.mask = inside[:, None]
        self.outside = ~inside.flatten(1)[:, None]
        self.source = source.flatten(1)[:, None]

    def __call__(self, planes: torch.Tensor) -> torch.Tensor:
        """The planes [B, ..., H, W] of any dtype, each moved as its sample; differentiable.

        One gather over a flat pixel index: codes of one byte are moved before they become float32.
        """
        flat = planes.flatten(1, -3).flatten(2)
        moved = flat.gather(2, self.source.expand(-1, flat.shape[1], -1))
        return moved.masked_fill(self.outside, 0).view(planes.shape)

"""Augmentation of an image together with its target gradients, drawn for each sample (Appendix G.2)."""

import torch
from torch.nn import functional as F

PADDING = 4


def crop_and_flip(
    images: torch.Tensor,
    target_gradients: torch.Tensor | None,
    draws: torch.Generator,
    *,
    share: tuple[slice, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random crop (zero padding of 4 pixels) and horizontal flip with probability 1/2, the same for image and targets.

    Images float [B, C, H, W], targets float [B, K, C, H, W] or None. Away from the borders this equals differentiating
    through the augmentation back to the unaugmented image. With `share` (rows, whole) the images are those rows of a
    batch of `whole` images, and move as they do in it.
    """
    batch, channels, height, width = images.shape
    planes = images
    if target_gradients is not None:
        planes = torch.cat([images, target_gradients.flatten(1, 2)], dim=1)
    device = images.device
    rows_of_batch, whole = share or (slice(None), batch)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, whole, 1), generator=draws, device=device)[:, rows_of_batch]
    flipped = (torch.rand(whole, 1, generator=draws, device=device) < 0.5)[rows_of_batch]
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = left + torch.where(flipped, width - 1 - columns, columns)
    padded = F.pad(planes, (PADDING,) * 4)
    samples = torch.arange(batch, device=device)[:, None, None]
    # advanced indices around a slice put the slice last: [B, H, W, planes]
    moved = padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if target_gradients is None:
        return moved, None
    return moved[:, :channels].contiguous(), moved[:, channels:].reshape(target_gradients.shape)

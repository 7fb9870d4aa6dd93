"""Backward warping of a field by a displacement, bilinear. Source of the idea: Jaderberg et al. 2015."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(like: Tensor) -> Tensor:
    """Pixel coordinates (1, 2, height, width), channel 0 = x (column), channel 1 = y (row)."""
    height, width = like.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=torch.float32),
        torch.arange(width, device=like.device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack((x, y)).unsqueeze(0)


def sample(field: Tensor, position: Tensor) -> Tensor:
    """Bilinear values of ``field`` at pixel positions; outside the field the nearest edge value.

    Args:
        field: (batch, channel, height, width).
        position: (batch, 2, height, width) columns and rows, in pixels.
    """
    height, width = field.shape[-2:]
    x, y = position.unbind(dim=1)
    grid = torch.stack((x * (2.0 / max(width - 1, 1)) - 1, y * (2.0 / max(height - 1, 1)) - 1), dim=-1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=True)


def warp(field: Tensor, displacement: Tensor) -> Tensor:
    """Move ``field`` by ``displacement`` pixels: result(x) = field(x - displacement(x))."""
    return sample(field, pixel_grid(field) - displacement)

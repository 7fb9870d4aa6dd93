"""One step of the advection-diffusion equation. Source: de Bezenac et al. 2018, equation 5.

A field moved by w and spread with diffusivity D over one step is its Gaussian mean around x - w, of variance 2 D.
"""

import torch
from torch import Tensor

from models.layers.warp import pixel_grid

RADIUS = 3


def advect_diffuse(field: Tensor, motion: Tensor, diffusivity: Tensor) -> Tensor:
    """Move a field and spread it.

    The Gaussian is cut at ``RADIUS`` pixels and its weights sum to 1, so a constant field stays what it is. Beyond the
    edge the nearest edge value stands.

    Args:
        field: (batch, channel, height, width).
        motion: (batch, 2, height, width): columns and rows per step, positive to the right and down.
        diffusivity: (batch, 1, height, width), positive, in pixels squared per step.
    """
    height, width = field.shape[-2:]
    source = pixel_grid(field).to(motion.dtype) - motion
    nearest = source.detach().round()
    fraction = source - nearest  # of the source point from its pixel, in -0.5 to 0.5
    steps = torch.arange(-RADIUS, RADIUS + 1, device=field.device, dtype=motion.dtype).view(1, -1, 1, 1)
    weights = [
        torch.softmax(-((steps - fraction[:, n : n + 1]) ** 2) / (4 * diffusivity), dim=1) for n in (0, 1)
    ]  # a Gaussian over its own sum
    column, row = nearest[:, 0].long(), nearest[:, 1].long()
    flat = field.flatten(2)
    out = torch.zeros_like(field)
    for r in range(2 * RADIUS + 1):
        rows = (row + r - RADIUS).clamp(0, height - 1) * width
        line = torch.zeros_like(field)
        for c in range(2 * RADIUS + 1):
            place = (rows + (column + c - RADIUS).clamp(0, width - 1)).flatten(1).unsqueeze(1)
            values = flat.gather(2, place.expand(-1, field.shape[1], -1)).view_as(field)
            line = line + values * weights[0][:, c : c + 1]
        out = out + line * weights[1][:, r : r + 1]
    return out

"""Optical flow: estimate the motion, then carry the newest frame along it (semi-Lagrangian, backward)."""

import torch
from torch import Tensor

from models.baselines.motion import estimate_motion
from models.contract import Prediction
from models.layers.warp import pixel_grid, sample


def extrapolate(last: Tensor, observed: Tensor, motion: Tensor, leads: int) -> Prediction:
    """Advect the newest frame along a steady motion.

    Each lead follows the trajectory one frame further back by the midpoint rule (as pysteps' semi-Lagrangian scheme,
    Germann and Zawadzki 2002). A trajectory that would leave the observed area stops at the last observed point: its
    value stands for the inflow and is flagged, so that every cell has a value.

    Args:
        last: (batch, channel, height, width), 0-1.
        observed: (batch, 1, height, width) bool.
        motion: (batch, 2, height, width) pixels per frame.
    """
    height, width = last.shape[-2:]
    edge = torch.tensor((width - 1.0, height - 1.0), device=last.device).view(1, 2, 1, 1)
    holes = not bool(observed.all())
    covered = observed.to(last.dtype)
    source = last * covered

    def seen(there: Tensor) -> Tensor:
        inside = ((there >= 0) & (there <= edge)).all(dim=1, keepdim=True)
        return inside & (sample(covered, there) > 0.5) if holes else inside

    position = pixel_grid(last).expand_as(motion)
    outside = ~observed
    values, flags = [], []
    for _ in range(leads):
        half = position - 0.5 * sample(motion, position)
        step = sample(motion, half)
        within = seen(position - step)
        reach = within.to(last.dtype)
        if not bool(within.all()):
            # go as far as is observed: the largest of 16 shares of the step
            for share in (0.5, 0.25, 0.125, 0.0625):
                reach = torch.where(~within & seen(position - (reach + share) * step), reach + share, reach)
        outside = outside | ~within
        position = position - reach * step
        value = sample(source, position)
        # next to a hole the unobserved neighbours must not count as dry
        values.append(value / sample(covered, position).clamp_min(0.5) if holes else value)
        flags.append(outside)
    return Prediction(torch.stack(values, dim=1), torch.stack(flags, dim=1))


class OpticalFlow:
    """Motion from the input frames, extrapolation of the newest one."""

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``; several channels share the motion of the first."""
        motion = estimate_motion(frames[:, :, 0], observed[:, :, 0])
        return extrapolate(frames[:, -1], observed[:, -1], motion, leads)

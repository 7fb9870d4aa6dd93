"""Optical flow: estimate the motion, then carry the newest frame along it (semi-Lagrangian, backward)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.baselines.motion import estimate_motion
from models.contract import Prediction
from models.layers.warp import pixel_grid, sample


def departures(observed: Tensor, motion: Tensor, leads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Where the rain of each cell was at the reference time, lead by lead, if it follows a steady motion.

    Each lead follows the trajectory one frame further back by the midpoint rule (as pysteps' semi-Lagrangian scheme,
    Germann and Zawadzki 2002). A trajectory that would leave the observed area stops at the last observed point.

    Args:
        observed: (batch, 1, height, width) bool, at the reference time.
        motion: (batch, 2, height, width) pixels per frame.

    Yields:
        Position (batch, 2, height, width) in columns and rows, and (batch, 1, height, width) bool: True where it
        stopped at the edge, or began outside.
    """
    height, width = observed.shape[-2:]
    edge = torch.tensor((width - 1.0, height - 1.0), device=motion.device).view(1, 2, 1, 1)
    covered = None if bool(observed.all()) else observed.to(motion.dtype)

    def seen(there: Tensor, n: slice) -> Tensor:
        inside = ((there >= 0) & (there <= edge)).all(dim=1, keepdim=True)
        return inside if covered is None else inside & (sample(covered[n], there) > 0.5)

    position = pixel_grid(motion).repeat(motion.shape[0], 1, 1, 1)
    outside = ~observed
    for _ in range(leads):
        half = position - 0.5 * sample(motion, position)
        step = sample(motion, half)
        within = seen(position - step, slice(None))
        leaving = ~within & ~outside
        outside = outside | ~within
        there = torch.where(outside & observed, position, position - step)
        for n in leaving.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
            # only these few go as far as is observed: the largest of 16 shares of the step
            row, column = leaving[n, 0].nonzero(as_tuple=True)
            start, way = position[n][:, row, column][None, :, None], step[n][:, row, column][None, :, None]
            reach = torch.zeros_like(start[:, :1])
            for share in (0.5, 0.25, 0.125, 0.0625):
                reach += share * seen(start - (reach + share) * way, slice(n, n + 1))
            there[n][:, row, column] = (start - reach * way)[0, :, 0]
        position = there
        yield position, outside


def carried(field: Tensor, observed: Tensor, position: Tensor) -> Tensor:
    """Bilinear values of a field at departure points; next to a hole the unobserved neighbours do not count as dry.

    Args:
        field: (batch, channel, height, width).
        observed: (batch, 1, height, width) bool.
        position: (batch, 2, height, width), see ``departures``.
    """
    if bool(observed.all()):
        return sample(field, position)
    covered = observed.to(field.dtype)
    value = sample(torch.cat((field * covered, covered), dim=1), position)
    return value[:, :-1] / value[:, -1:].clamp_min(0.5)


def extrapolate(last: Tensor, observed: Tensor, motion: Tensor, leads: int) -> Prediction:
    """Advect the newest frame along a steady motion, see ``departures``.

    Where a trajectory left the observed area, the value at the edge stands for the inflow and is flagged, so that every
    cell has a value.

    Args:
        last: (batch, channel, height, width), 0-1.
        observed: (batch, 1, height, width) bool.
        motion: (batch, 2, height, width) pixels per frame.
    """
    values, flags = [], []
    for position, outside in departures(observed, motion, leads):
        values.append(carried(last, observed, position))
        flags.append(outside)
    return Prediction(torch.stack(values, dim=1), torch.stack(flags, dim=1))


class OpticalFlow:
    """Motion from the input frames, extrapolation of the newest one."""

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``; several channels share the motion of the first."""
        motion = estimate_motion(frames[:, :, 0], observed[:, :, 0])
        return extrapolate(frames[:, -1], observed[:, -1], motion, leads)

"""Motion and advection on numpy arrays; the torch flow runs inside."""

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Pixels


def interpolate_gap(
    before: Pixels, after: Pixels, before_observed: NDArray[np.bool_], after_observed: NDArray[np.bool_], missing: int
) -> list[tuple[Pixels, NDArray[np.bool_]]]:
    """Frames for ``missing`` instants between two frames: both are advected to the instant and averaged by distance.

    Args:
        before, after: (channels, rows, columns) uint8, ``missing + 1`` cadences apart; the first tells the motion.
        before_observed, after_observed: (rows, columns) bool.

    Returns:
        For each missing instant the pixels and the cells that have a value (observed in the earlier or later frame).
    """
    import torch

    from models.baselines.motion import estimate_motion
    from models.layers.warp import warp

    frames = torch.from_numpy(np.stack((before, after))).float().unsqueeze(0) / 255  # (1, 2, channels, rows, columns)
    observed = torch.from_numpy(np.stack((before_observed, after_observed))).unsqueeze(0)
    motion = estimate_motion(frames[:, :, 0], observed)
    filled = []
    for n in range(1, missing + 1):
        share = n / (missing + 1)
        sides = []
        for side, way in ((0, share), (1, share - 1)):
            seen = observed[:, side, None]
            both = torch.cat((frames[:, side] * seen, seen.float()), dim=1)
            sides.append(warp(both, motion * way))
        mean = sides[0] * (1 - share) + sides[1] * share
        values = mean[:, :-1] / mean[:, -1:].clamp_min(1e-6)
        covered = (torch.maximum(sides[0][:, -1], sides[1][:, -1]) > 0.5)[0].numpy()
        pixels = np.floor(values[0].clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)
        filled.append((np.where(covered, pixels, 0).astype(np.uint8), covered))
    return filled


def move_forward(
    earlier: NDArray[np.float32], later: NDArray[np.float32], share: float, floor: float, top: float
) -> NDArray[np.float32]:
    """The later of two fields, carried on along the motion of their first channel.

    Args:
        earlier, later: (channels, rows, columns), NaN where not observed, ``floor`` where nothing is there.
        share: how far, in units of the time between the two.
        floor, top: values between which the motion is seen.

    Returns:
        The moved field, observed where ``later`` is; where it would come from outside, as it was.
    """
    import torch

    from models.baselines.motion import estimate_motion
    from models.layers.warp import warp

    fields = torch.from_numpy(np.stack((earlier, later))).unsqueeze(0)
    observed = ~fields.isnan()
    scaled = ((fields.nan_to_num(floor) - floor) / (top - floor)).clamp(0, 1)
    motion = estimate_motion(scaled[:, :, 0], observed[:, :, 0])
    both = torch.cat((scaled[:, 1] * observed[:, 1], observed[:, 1].float()), dim=1)
    value, weight = warp(both, motion * share)[0].numpy().reshape(2, *later.shape)
    moved = floor + (top - floor) * value / np.maximum(weight, 1e-6)
    rows, columns = np.indices(later.shape[1:])
    x, y = columns - share * motion[0, 0].numpy(), rows - share * motion[0, 1].numpy()
    inside = (x >= 0) & (x <= later.shape[2] - 1) & (y >= 0) & (y <= later.shape[1] - 1)
    moved = np.where(inside & (weight > 0.5), moved, later)
    return np.where(np.isnan(later), np.nan, moved).astype(np.float32)

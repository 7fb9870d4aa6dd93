"""Motion and advection on numpy arrays; the torch flow runs inside."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.frames.grayscale import Pixels

# parts into which the time between two frames is cut at most; beyond, a part moves rain by more than a cell
MOST_SUBSTEPS = 16


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


def estimated_motion(pixels: Pixels, observed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Motion of the newest frames in cells per frame, (2, rows, columns): eastward, southward; 0 without echo.

    Args:
        pixels: (time, rows, columns) uint8, oldest first; one frame alone tells no motion.
        observed: (time, rows, columns) bool.
    """
    if len(pixels) < 2 or not pixels.any():
        return np.zeros((2, *pixels.shape[1:]), np.float32)
    import torch

    from models.baselines.motion import MotionConfig, estimate_motion

    newest = slice(-MotionConfig().pairs - 1, None)
    frames = torch.from_numpy(np.ascontiguousarray(pixels[newest])).float().unsqueeze(0) / 255
    seen = torch.from_numpy(np.ascontiguousarray(observed[newest])).unsqueeze(0)
    with torch.inference_mode():
        return np.asarray(estimate_motion(frames, seen)[0].numpy())


def amounts_along_motion(
    rates: NDArray[np.floating[Any]], motion: NDArray[np.float32], step_h: float
) -> NDArray[np.float32]:
    """Rain amount between each two instantaneous frames, integrated while the rain moves from one to the other.

    The time between is cut into parts in which rain moves by about a cell. At each cut the frames are moved there
    along the motion, the earlier forward and the later backward, and blended by their distance; the parts are added by
    the trapezoid rule. Where one of the two comes from outside the coverage the other stands alone, and where both
    do, the cell's own values. Without motion this is the trapezoid rule between the frames.

    Args:
        rates: (frames, rows, columns) mm/h, oldest first; NaN is not covered.
        motion: (2, rows, columns) cells per frame, eastward and southward.
        step_h: hours between two frames.

    Returns:
        (frames - 1, rows, columns) mm; NaN where a cell is not covered in all frames.
    """
    covered = ~np.isnan(rates).any(axis=0)
    values = np.where(covered, rates, 0).astype(np.float32)
    speed = float(np.hypot(*motion)[covered].max(initial=0.0))
    parts = min(max(1, int(np.ceil(speed))), MOST_SUBSTEPS)
    # height and width of the cells that rain may come from or go to
    reach = [2 * (int(np.ceil(np.abs(way[covered]).max(initial=0.0))) + 1) + 1 for way in (motion[1], motion[0])]
    at_edge = ndimage.maximum_filter((~covered).astype(np.uint8), reach, mode="constant", cval=1) > 0
    amounts = np.empty((len(rates) - 1, *covered.shape), np.float32)
    for n, (earlier, later) in enumerate(pairwise(values)):
        # the ends of the trapezoid; what lies between them is worked out only where rain may come past
        amounts[n] = (earlier + later) / (2 * parts)
        wet = ndimage.maximum_filter(((earlier > 0) | (later > 0)).astype(np.uint8), reach, mode="constant") > 0
        for cells, holes in ((wet & ~at_edge, None), (wet & covered & at_edge, covered)):
            if parts > 1 and cells.any():
                amounts[n][cells] += _between(earlier, later, holes, motion, np.nonzero(cells), parts) / parts
    return np.where(covered, amounts * np.float32(step_h), np.float32(np.nan))


def _between(
    earlier: NDArray[np.float32],
    later: NDArray[np.float32],
    covered: NDArray[np.bool_] | None,
    motion: NDArray[np.float32],
    cells: tuple[NDArray[np.intp], ...],
    parts: int,
) -> NDArray[np.float32]:
    """Sum of the rates of some cells at the cuts between two frames.

    Args:
        covered: None for cells that nothing reaches from an edge of the coverage or the grid, which is twice as fast.
    """
    import torch

    from models.layers.warp import sample

    height, width = earlier.shape
    planes = [(side,) if covered is None else (side, covered.astype(np.float32)) for side in (earlier, later)]
    sides = [torch.from_numpy(np.stack(plane)).unsqueeze(0) for plane in planes]
    own = [torch.from_numpy(side[cells]) for side in (earlier, later)]
    here = torch.from_numpy(np.stack((cells[1], cells[0])).astype(np.float32))
    way = torch.from_numpy(motion[:, cells[0], cells[1]])
    total = torch.zeros_like(own[0])
    for cut in range(1, parts):
        share = cut / parts
        sums, weights = torch.zeros_like(total), torch.zeros_like(total)
        for side, back, weight in zip(sides, (share, share - 1), (1 - share, share), strict=True):
            there = here - back * way
            sampled = sample(side, there[None, :, None])[0, :, 0]
            if covered is None:
                total += weight * sampled[0]
                continue
            x, y = there
            inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
            value, seen = sampled
            usable = weight * (inside & (seen > 0.5))
            # next to a hole the cells that are not covered must not count as dry
            sums += usable * value / seen.clamp_min(0.5)
            weights += usable
        if covered is not None:
            standing = (1 - share) * own[0] + share * own[1]
            total += torch.where(weights > 0, sums / weights.clamp_min(1e-6), standing)
    return np.asarray(total.numpy())

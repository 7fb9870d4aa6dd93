"""Sums of one forecast against one observation. Sums add up over cycles; ratios are made last (``scores``)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Pixels

# common: every compared method and the observation have a value.
# all_observed: the observation has a value; a missing forecast counts as dry.
PIXEL_SETS = ("common", "all_observed")
COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
MOMENTS = ("pairs", "squared_error", "absolute_error", "forecast_square", "observed_square", "product")


@dataclass(frozen=True)
class PairSums:
    """Sums over the pairs of one mask.

    Attributes:
        counts: (4, threshold) int64, in the order of ``COUNTS``.
        moments: (6,) float64, in the order of ``MOMENTS``, in units of pixels (0-255).
    """

    counts: NDArray[np.int64]
    moments: NDArray[np.float64]


def pair_sums(forecast: Pixels, observed: Pixels, valid: NDArray[np.bool_], thresholds: list[int]) -> PairSums:
    """Sums over valid pairs. An event is a pixel >= the threshold's own pixel, in forecast and truth alike.

    Everything follows from the joint histogram of the two frames, so that the cells are read once.

    Args:
        forecast, observed: same shape, uint8.
        valid: same shape; other cells take no part.
        thresholds: pixels, rising.
    """
    codes = forecast[valid].astype(np.int32) * 256 + observed[valid]
    joint = np.bincount(codes, minlength=65536).reshape(256, 256).astype(np.int64)
    # above[f, o] = pairs with forecast >= f and observation >= o
    above = np.zeros((257, 257), np.int64)
    above[:256, :256] = joint[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    at = np.asarray(thresholds)
    hits, forecast_events, observed_events = above[at, at], above[at, 0], above[0, at]
    total = above[0, 0]
    counts = np.stack(
        (
            hits,
            observed_events - hits,
            forecast_events - hits,
            total - forecast_events - observed_events + hits,
        )
    )
    level = np.arange(256, dtype=np.float64)
    error = level[:, None] - level[None, :]
    by_forecast, by_observed = joint.sum(1), joint.sum(0)
    moments = np.array(
        [
            total,
            (joint * error**2).sum(),
            (joint * np.abs(error)).sum(),
            (by_forecast * level**2).sum(),
            (by_observed * level**2).sum(),
            level @ joint @ level,
        ],
        np.float64,
    )
    return PairSums(counts, moments)

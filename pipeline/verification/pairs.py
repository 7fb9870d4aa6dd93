"""Sums over the pairs of one forecast frame and one observation. Sums add up; ratios are made last (``scores``)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Pixels

# common: every compared method and the observation have a value.
# all_observed: the observation has a value; a missing forecast counts as dry.
PIXEL_SETS = ("common", "all_observed")
COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
# of pixels (0-255), then of rain rates (mm/h); the balanced ones are weighted by the observed rain (Shi et al. 2017)
MOMENTS = (
    "pairs",
    "forecast_square",
    "observed_square",
    "product",
    "absolute_error",
    "balanced_squared_error",
    "balanced_absolute_error",
    "rain_squared_error",
    "rain_absolute_error",
    "forecast_rain",
    "observed_rain",
)
# HKO-7: weight of a pair by its observed rain rate, mm/h; below the first, 1
BALANCED_WEIGHTS = ((2.0, 2.0), (5.0, 5.0), (10.0, 10.0), (30.0, 30.0))
# HKO-7 ignores observed echo that is weaker than this but not none: pixel 71 on its scale of -10 to 60 dBZ
FAINT_DBZ = -10 + 70 * 71 / 255


@dataclass(frozen=True)
class PixelTables:
    """What pixels mean in a domain.

    Attributes:
        thresholds: pixel of each event, rising.
        rates: (256,) rain rate, mm/h.
        weights: (256,) of a pair, by its observed pixel.
        faint: (256,) True where an observed pixel takes no part.
    """

    thresholds: tuple[int, ...]
    rates: NDArray[np.float64]
    weights: NDArray[np.float64]
    faint: NDArray[np.bool_]

    @cached_property
    def rate_distances(self) -> NDArray[np.float64]:
        """Between the rates of every two pixels, (256, 256)."""
        return np.abs(self.rates[:, None] - self.rates)


@dataclass(frozen=True)
class PairSums:
    """Sums over the pairs of one mask.

    Attributes:
        counts: (4, threshold) int64, in the order of ``COUNTS``.
        moments: (11,) float64, in the order of ``MOMENTS``.
    """

    counts: NDArray[np.int64]
    moments: NDArray[np.float64]


_LEVEL = np.arange(256, dtype=np.float64)
_DISTANCE = np.abs(_LEVEL[:, None] - _LEVEL)


def pair_sums(forecast: Pixels, observed: Pixels, valid: NDArray[np.bool_], tables: PixelTables) -> PairSums:
    """Sums over valid pairs. An event is a pixel >= the threshold's own pixel, in forecast and truth alike.

    Everything follows from the joint histogram of the two frames, so that the cells are read once.

    Args:
        forecast, observed: same shape, uint8.
        valid: same shape; other cells take no part.
    """
    joint = _joint_histogram(forecast, observed, valid)
    # classes of pixels between thresholds: [0, t1), [t1, t2), ...; above[f, o] = pairs at or above both
    edges = [0, *tables.thresholds]
    classes = np.add.reduceat(np.add.reduceat(joint, edges, axis=0), edges, axis=1)
    above = classes[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    hits = above.diagonal()[1:]
    forecast_events, observed_events, total = above[1:, 0], above[0, 1:], above[0, 0]
    misses, false_alarms = observed_events - hits, forecast_events - hits
    counts = np.stack((hits, misses, false_alarms, total - hits - misses - false_alarms))
    return PairSums(counts, _moments(joint.astype(np.float64), tables))


def _joint_histogram(forecast: Pixels, observed: Pixels, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    codes = np.left_shift(forecast, 8, dtype=np.uint16)
    codes |= observed
    if not valid.all():
        codes = codes[valid]
    return np.bincount(codes.ravel(), minlength=65536).reshape(256, 256)


def _moments(joint: NDArray[np.float64], tables: PixelTables) -> NDArray[np.float64]:
    rates, weights = tables.rates, tables.weights
    # per observed pixel: the number of pairs and the sums of forecast pixel, its square, rate, its square
    powers = np.stack((np.ones(256), _LEVEL, _LEVEL**2, rates, rates**2))
    n, f, ff, r, rr = powers @ joint
    distance = np.einsum("fo,fo->o", _DISTANCE, joint)
    rain_distance = np.vdot(tables.rate_distances, joint)
    return np.array(
        [
            n.sum(),
            ff.sum(),
            n @ _LEVEL**2,
            f @ _LEVEL,
            distance.sum(),
            weights @ (ff - 2 * _LEVEL * f + _LEVEL**2 * n),
            weights @ distance,
            (rr - 2 * rates * r + rates**2 * n).sum(),
            rain_distance,
            r.sum(),
            n @ rates,
        ]
    )

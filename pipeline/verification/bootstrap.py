"""Block bootstrap: what scores might have been, had other hours of the same kind come (Künsch 1989)."""

import numpy as np
from numpy.typing import NDArray

from pipeline.verification.scores import Scores, Sums

# forecasts of one hour share most of their weather, so an hour is drawn as a whole
BLOCK_S = 3600
# with fewer the spread of draws says little
FEWEST_BLOCKS = 6
DRAWS = 1000
LEVEL = 0.95


def draws(blocks: int, seed: int, count: int = DRAWS) -> NDArray[np.float64]:
    """How often each block is drawn, (draw, block); the same for every method, so that differences are paired."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=count).astype(np.float64)


def resampled(sums: Sums, weights: NDArray[np.float64]) -> Sums:
    """Sums of every draw, (draw, ...), from those of every block, (block, ...)."""
    return {
        name: (weights @ values.reshape(len(values), -1).astype(np.float64)).reshape(len(weights), *values.shape[1:])
        for name, values in sums.items()
    }


def interval(samples: Scores, level: float = LEVEL) -> tuple[Scores, Scores]:
    """Percentile interval over the first axis; NaN where more than one in twenty draws gave no value."""
    measured = ~np.isnan(samples)
    known = measured.mean(axis=0) > 0.95
    tail = 100 * (1 - level) / 2
    filled = np.where(known, samples, 0.0)
    if measured[:, known].all():
        low, high = np.percentile(filled, (tail, 100 - tail), axis=0)
    else:
        low, high = np.nanpercentile(filled, (tail, 100 - tail), axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def no_interval(shape: tuple[int, ...]) -> tuple[Scores, Scores]:
    """The interval where there are too few blocks for one."""
    return np.full(shape, np.nan), np.full(shape, np.nan)


def effective_size(series: NDArray[np.float64], times_s: NDArray[np.int64], cadence_s: int) -> float:
    """Number of independent values in a series of neighbours that resemble each other, n (1 - r) / (1 + r).

    r is the correlation of values one cadence apart. Source: Wilks 2011, section 5.2.4.

    Args:
        series: one value per reference time, NaN where not measured.

    Returns:
        Between 1 and n; NaN below ten neighbours, which cannot tell.
    """
    measured = ~np.isnan(series)
    values, times_s = series[measured], times_s[measured]
    next_to = np.flatnonzero(np.diff(times_s) == cadence_s)
    if len(next_to) < 10:
        return float("nan")
    anomaly = values - values.mean()
    variance = float((anomaly**2).mean())
    if variance == 0:
        return float("nan")
    r = float((anomaly[next_to] * anomaly[next_to + 1]).mean()) / variance
    r = min(max(r, 0.0), 0.999)
    return max(1.0, len(values) * (1 - r) / (1 + r))

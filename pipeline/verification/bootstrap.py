"""Block bootstrap: what scores might have been, had other hours of the same kind come (Carlstein 1986)."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.verification.scores import Scores, Sums

# sums are kept by hours, and drawn by as many hours in a row as forecasts resemble each other
HOUR_S = 3600
# with fewer blocks the spread of draws says little
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


def interval(samples: Scores, value: Scores, blocks: int, level: float = LEVEL) -> tuple[Scores, Scores]:
    """Percentile interval over the first axis, widened as for a mean of so few values.

    Percentiles of n drawn blocks are too narrow by sqrt((n - 1) / n), and by the quantile of Student's t against that
    of the normal distribution. No end lies beyond what any draw gave. NaN where more than one in twenty draws gave no
    value.
    """
    measured = ~np.isnan(samples)
    known = measured.mean(axis=0) > 0.95
    tail = 100 * (1 - level) / 2
    filled = np.where(known, samples, 0.0)
    percentile = np.percentile if measured[:, known].all() else np.nanpercentile
    low, high = percentile(filled, (tail, 100 - tail), axis=0)
    least, most = np.nanmin(filled, axis=0), np.nanmax(filled, axis=0)
    upper = 1 - (1 - level) / 2
    wider = stats.t.ppf(upper, blocks - 1) / stats.norm.ppf(upper) * np.sqrt(blocks / (blocks - 1))
    low, high = np.maximum(value - wider * (value - low), least), np.minimum(value + wider * (high - value), most)
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


def block_hours(sizes: NDArray[np.float64], forecasts: int, hours: int, cadence_s: int, horizon_s: int) -> int:
    """Hours in a row that are drawn together: twice the time in which forecasts resemble each other.

    Where that leaves too few blocks they are shortened, but not below that time. In simulations with a memory of an
    hour or more such intervals of 95 % held the truth in 83 to 93 of 100 cases; with single hours it was 40 to 70.

    Args:
        sizes: effective number of forecasts, see ``effective_size``, of some lead times; NaN is not known.
        hours: in which forecasts were made.
        horizon_s: the last lead time, which serves where nothing is known.
    """
    known = sizes[~np.isnan(sizes)]
    memory = (forecasts * cadence_s / float(known.min()) if known.size else horizon_s) / HOUR_S
    return max(1, min(int(np.ceil(2 * memory)), max(int(np.ceil(memory)), hours // FEWEST_BLOCKS)))


def in_blocks(sums: Sums, hours: NDArray[np.int64], length: int) -> Sums:
    """Sums of blocks of ``length`` hours, from those of single ones.

    Args:
        hours: of each first index of the sums, hours since 1970, rising.
    """
    block = hours // length
    first = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    return {name: np.add.reduceat(values, first, axis=0) for name, values in sums.items()}

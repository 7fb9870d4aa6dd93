"""Scores from sums. Every function takes arrays of equal shape; a zero denominator gives NaN, "not measured"."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Scores = NDArray[np.float64]


def _ratio(top: Array, bottom: Array) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(bottom) != 0, np.asarray(top, np.float64) / bottom, np.nan)


def csi(hits: Array, misses: Array, false_alarms: Array) -> Scores:
    """Critical success index, hits / (hits + misses + false alarms); 0 to 1, best 1."""
    return _ratio(hits, hits + misses + false_alarms)


def pod(hits: Array, misses: Array) -> Scores:
    """Probability of detection, hits / (hits + misses); 0 to 1, best 1."""
    return _ratio(hits, hits + misses)


def far(hits: Array, false_alarms: Array) -> Scores:
    """False alarm ratio, false alarms / (hits + false alarms); 0 to 1, best 0."""
    return _ratio(false_alarms, hits + false_alarms)


def frequency_bias(hits: Array, misses: Array, false_alarms: Array) -> Scores:
    """Forecast events per observed event; best 1, above 1 is over-forecasting."""
    return _ratio(hits + false_alarms, hits + misses)


def hss(hits: Array, misses: Array, false_alarms: Array, correct_negatives: Array) -> Scores:
    """Heidke skill score against chance; at most 1, 0 is no better than chance."""
    h, m, f, c = (np.asarray(v, np.float64) for v in (hits, misses, false_alarms, correct_negatives))
    return _ratio(2 * (h * c - m * f), (h + m) * (m + c) + (h + f) * (f + c))


def mean(total: Array, pairs: Array) -> Scores:
    """Sum over pairs divided by their number (MSE and MAE)."""
    return _ratio(total, pairs)


def correlation(product: Array, forecast_square: Array, observed_square: Array, pairs: Array) -> Scores:
    """Un-centred correlation, sum(PQ) / sqrt(sum(P^2) sum(Q^2) + 1e-9); 0 to 1. Source: Wu 2019, chapter 4."""
    value = np.asarray(product) / np.sqrt(np.asarray(forecast_square) * np.asarray(observed_square) + 1e-9)
    return np.where(np.asarray(pairs) > 0, value, np.nan)

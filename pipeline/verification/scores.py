"""Scores from sums. Every function takes arrays of equal shape; a zero denominator gives NaN, "not measured".

Counts are hits h, misses m, false alarms f and correct negatives c of an event, added up over pixels and forecasts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
Sums = dict[str, Array]


def _ratio(top: Any, bottom: Any) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(bottom) != 0, np.asarray(top, np.float64) / bottom, np.nan)


def csi(hits: Array, misses: Array, false_alarms: Array) -> Scores:
    """Critical success index, h / (h + m + f); 0 to 1, best 1."""
    return _ratio(hits, hits + misses + false_alarms)


def pod(hits: Array, misses: Array) -> Scores:
    """Probability of detection, h / (h + m); 0 to 1, best 1."""
    return _ratio(hits, hits + misses)


def far(hits: Array, false_alarms: Array) -> Scores:
    """False alarm ratio, f / (h + f); 0 to 1, best 0."""
    return _ratio(false_alarms, hits + false_alarms)


def pofd(false_alarms: Array, correct_negatives: Array) -> Scores:
    """Probability of false detection (false alarm rate), f / (f + c); 0 to 1, best 0."""
    return _ratio(false_alarms, false_alarms + correct_negatives)


def frequency_bias(hits: Array, misses: Array, false_alarms: Array) -> Scores:
    """Forecast events per observed event; best 1, above 1 is over-forecasting."""
    return _ratio(hits + false_alarms, hits + misses)


def hss(hits: Array, misses: Array, false_alarms: Array, correct_negatives: Array) -> Scores:
    """Heidke skill score against chance; at most 1, 0 is no better than chance."""
    h, m, f, c = (np.asarray(v, np.float64) for v in (hits, misses, false_alarms, correct_negatives))
    return _ratio(2 * (h * c - m * f), (h + m) * (m + c) + (h + f) * (f + c))


def gss(hits: Array, misses: Array, false_alarms: Array, correct_negatives: Array) -> Scores:
    """Gilbert skill score (equitable threat score): CSI without the hits expected by chance; -1/3 to 1, best 1."""
    h, m, f, c = (np.asarray(v, np.float64) for v in (hits, misses, false_alarms, correct_negatives))
    chance = np.nan_to_num(_ratio((h + m) * (h + f), h + m + f + c))
    return _ratio(h - chance, h + m + f - chance)


def sedi(hits: Array, misses: Array, false_alarms: Array, correct_negatives: Array) -> Scores:
    """Symmetric extremal dependence index, for rare events; -1 to 1, best 1.

    Of H = POD and F = POFD: (ln F - ln H - ln(1 - F) + ln(1 - H)) / (ln F + ln H + ln(1 - F) + ln(1 - H)). It is not
    measured where H or F is 0 or 1. Source: Ferro and Stephenson (2011), equation 2.
    """
    rate, false_rate = pod(hits, misses), pofd(false_alarms, correct_negatives)
    inside = (rate > 0) & (rate < 1) & (false_rate > 0) & (false_rate < 1)
    h, f = (np.where(inside, v, 0.5) for v in (rate, false_rate))
    top = np.log(f) - np.log(h) - np.log(1 - f) + np.log(1 - h)
    bottom = np.log(f) + np.log(h) + np.log(1 - f) + np.log(1 - h)
    return np.where(inside, _ratio(top, bottom), np.nan)


def mean(total: Array, pairs: Array) -> Scores:
    """Sum over pairs divided by their number."""
    return _ratio(total, pairs)


def correlation(product: Array, forecast_square: Array, observed_square: Array, pairs: Array) -> Scores:
    """Un-centred correlation, sum(PQ) / sqrt(sum(P^2) sum(Q^2) + 1e-9); 0 to 1. Source: Wu 2019, chapter 4.

    Not measured where forecast or observation is dry throughout.
    """
    squares = np.asarray(forecast_square, np.float64) * np.asarray(observed_square)
    return np.where((np.asarray(pairs) > 0) & (squares > 0), np.asarray(product) / np.sqrt(squares + 1e-9), np.nan)


def fss(forecast: Array, observed: Array, product: Array) -> Scores:
    """Fractions skill score, 1 - sum((P - Q)^2) / sum(P^2 + Q^2), from its added-up components; 0 to 1, best 1.

    Source: Roberts and Lean (2008). Not measured where neither has an event.
    """
    return _ratio(2 * np.asarray(product), np.asarray(forecast) + observed)


def _square(s: Sums) -> Array:
    return s["forecast_square"] + s["observed_square"] - 2 * s["product"]


@dataclass(frozen=True)
class Score:
    """One score as a function of sums.

    Attributes:
        label: for people, with the unit.
        of: from sums by name; a lead time (and event) is a cell of the arrays.
        best: its best value: 1, 0, or None where neither more nor less is better.
    """

    label: str
    of: Callable[[Sums], Scores]
    best: float | None


# of each event
EVENT_SCORES: dict[str, Score] = {
    "csi": Score("CSI", lambda s: csi(s["hits"], s["misses"], s["false_alarms"]), 1),
    "pod": Score("POD", lambda s: pod(s["hits"], s["misses"]), 1),
    "far": Score("FAR (false alarm ratio)", lambda s: far(s["hits"], s["false_alarms"]), 0),
    "pofd": Score("POFD (false alarm rate)", lambda s: pofd(s["false_alarms"], s["correct_negatives"]), 0),
    "bias": Score("frequency bias", lambda s: frequency_bias(s["hits"], s["misses"], s["false_alarms"]), None),
    "hss": Score("HSS", lambda s: hss(*(s[k] for k in ("hits", "misses", "false_alarms", "correct_negatives"))), 1),
    "gss": Score("GSS", lambda s: gss(*(s[k] for k in ("hits", "misses", "false_alarms", "correct_negatives"))), 1),
    "sedi": Score("SEDI", lambda s: sedi(*(s[k] for k in ("hits", "misses", "false_alarms", "correct_negatives"))), 1),
}
# of all pairs; pixels are 0-255, HKO-7's errors are sums over a frame in units of 0-1
FIELD_SCORES: dict[str, Score] = {
    "mse": Score("MSE (grey levels²)", lambda s: mean(_square(s), s["pairs"]), 0),
    "mae": Score("MAE (grey levels)", lambda s: mean(s["absolute_error"], s["pairs"]), 0),
    "correlation": Score(
        "correlation (un-centred)",
        lambda s: correlation(s["product"], s["forecast_square"], s["observed_square"], s["pairs"]),
        1,
    ),
    "b_mse": Score("B-MSE (HKO-7, per frame)", lambda s: mean(s["balanced_squared_error"] / 255**2, s["frames"]), 0),
    "b_mae": Score("B-MAE (HKO-7, per frame)", lambda s: mean(s["balanced_absolute_error"] / 255, s["frames"]), 0),
    "rain_mse": Score("rainfall MSE (mm²/h²)", lambda s: mean(s["rain_squared_error"], s["pairs"]), 0),
    "rain_mae": Score("rainfall MAE (mm/h)", lambda s: mean(s["rain_absolute_error"], s["pairs"]), 0),
    "rain_ratio": Score("forecast / observed rain", lambda s: _ratio(s["forecast_rain"], s["observed_rain"]), None),
}
# of each event and scale
FSS = {"fss": Score("FSS", lambda s: fss(s["fraction_forecast"], s["fraction_observed"], s["fraction_product"]), 1)}


# of each band of wavelengths
POWER = {"power_ratio": Score("power / observed power", lambda s: _ratio(s["power"], s["observed_power"]), None)}


def brier(s: Sums) -> Scores:
    """Brier score, the mean squared error of a probability; 0 to 1, best 0. Bins are the last axis."""
    return mean(s["probability_squared_error"], s["bin_pairs"].sum(axis=-1))


def brier_skill(s: Sums) -> Scores:
    """Brier score against always saying how often the event came in this period; at most 1, 0 is no better."""
    rate = mean(s["bin_events"].sum(axis=-1), s["bin_pairs"].sum(axis=-1))
    return 1 - _ratio(brier(s), rate * (1 - rate))


def roc(s: Sums) -> tuple[Scores, Scores]:
    """POFD and POD of warning from each bin on, the highest first; (..., bin + 1), starting at 0."""
    events = np.flip(np.asarray(s["bin_events"], np.float64), -1).cumsum(axis=-1)
    alarms = np.flip(np.asarray(s["bin_pairs"], np.float64), -1).cumsum(axis=-1) - events
    start = np.zeros((*events.shape[:-1], 1))
    false_rate, rate = (np.concatenate((start, _ratio(part, part[..., -1:])), axis=-1) for part in (alarms, events))
    return false_rate, rate


def roc_area(s: Sums) -> Scores:
    """Area under the ROC curve; 1 is best, 0.5 no better than chance."""
    false_rate, rate = roc(s)
    return np.asarray(((rate[..., 1:] + rate[..., :-1]) / 2 * np.diff(false_rate, axis=-1)).sum(axis=-1))


PROBABILITY_SCORES: dict[str, Score] = {
    "brier": Score("Brier score", brier, 0),
    "brier_skill": Score("Brier skill score", brier_skill, 1),
    "roc_area": Score("area under the ROC curve", roc_area, 1),
}


def crps(spread: str) -> Callable[[Sums], Scores]:
    """Continuous ranked probability score of an ensemble; best 0.

    Mean distance of a member from the observation minus half the mean distance between members (Gneiting and Raftery
    2007); the fair one counts the latter between different members only (Ferro 2014).
    """
    return lambda s: mean(s["ensemble_distance"] - s[spread], s["ensemble_pairs"])


ENSEMBLE_SCORES: dict[str, Score] = {
    "crps": Score("CRPS (mm/h)", crps("ensemble_spread"), 0),
    "crps_fair": Score("CRPS, fair (mm/h)", crps("ensemble_fair_spread"), 0),
}

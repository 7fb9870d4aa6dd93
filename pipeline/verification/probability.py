"""Sums for probabilities and ensembles: reliability, Brier score, ROC, CRPS."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Pixels
from pipeline.verification.pairs import PixelTables
from pipeline.verification.rules import PROBABILITY_BINS, Rules

if TYPE_CHECKING:
    from pipeline.verification.scoring import Compared, Sums

# of pairs in a bin of the forecast probability
OF_BINS = ("bin_pairs", "bin_probability", "bin_events")
# of an ensemble, mm/h: mean distance of members from the observation; half the mean distance between members, and the
# same between different members only
OF_ENSEMBLES = ("ensemble_pairs", "ensemble_distance", "ensemble_spread", "ensemble_fair_spread")


def empty(forecast: "Compared", rules: Rules, sets: int) -> "Sums":
    """Sums of nothing, for what the forecast has."""
    made: Sums = {}
    leads, thresholds = len(rules.structure_leads), len(rules.thresholds_mm_h)
    if forecast.exceedance is not None:
        made |= {name: np.zeros((leads, thresholds, PROBABILITY_BINS, sets)) for name in OF_BINS}
        made["probability_squared_error"] = np.zeros((leads, thresholds, sets))
    if forecast.members is not None:
        made |= {name: np.zeros((leads, sets)) for name in OF_ENSEMBLES}
    return made


def add(
    sums: "Sums",
    at: int,
    pixel_set: int,
    forecast: "Compared",
    lead: int,
    observed: Pixels,
    mask: NDArray[np.bool_],
    tables: PixelTables,
) -> None:
    """Add the pairs of one lead time and pixel set to the sums of ``empty``.

    Where the forecast has no value (and the pixel set counts it) it says that rain is impossible.
    """
    valid = forecast.valid[lead][mask] if forecast.valid is not None else np.zeros(int(mask.sum()), bool)
    truth = observed[mask]
    if forecast.exceedance is not None:
        for t, threshold in enumerate(tables.thresholds):
            said = np.where(valid, forecast.exceedance[t, lead][mask], 0).astype(np.float64)
            event = truth >= threshold
            bins = np.rint(said * (PROBABILITY_BINS - 1)).astype(np.intp)
            for name, weight in zip(OF_BINS, (None, said, event), strict=True):
                sums[name][at, t, :, pixel_set] = np.bincount(bins, weight, PROBABILITY_BINS)
            sums["probability_squared_error"][at, t, pixel_set] = ((said - event) ** 2).sum()
    if forecast.members is not None:
        rates = np.where(valid, tables.rates[forecast.members[:, lead][:, mask]], 0)
        size = len(rates)
        distance = np.abs(rates - tables.rates[truth]).mean(axis=0).sum()
        # sum over pairs of members |x_i - x_j| from the sorted ones, without making all pairs
        rank = 2 * np.arange(size) - size + 1
        total = (rank @ np.sort(rates, axis=0)).sum() / size
        found = (truth.size, distance, total / size, total / max(size - 1, 1))
        for name, value in zip(OF_ENSEMBLES, found, strict=True):
            sums[name][at, pixel_set] = value

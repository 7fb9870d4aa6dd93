"""Scores of a period with their intervals, as one long table: what the page shows and the CSV holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.verification import bootstrap, probability, scores
from pipeline.verification.neighbourhood import COMPONENTS
from pipeline.verification.pairs import COUNTS, MOMENTS, PIXEL_SETS
from pipeline.verification.period import Verified
from pipeline.verification.scores import Score, Scores, Sums

COLUMNS = (
    "model",
    "kind",
    "method",
    "versus",  # empty: the score itself; else the difference method - versus, on the same pixels and hours
    "pixel_set",
    "lead_minutes",
    "threshold_mm_h",
    "scale_km",  # side of the neighbourhood; wavelength
    "score",
    "value",
    "low",
    "high",
    "pairs",
    "coverage",
    "forecasts",
    "effective_forecasts",
    "hours",
    "blocks",
)


@dataclass(frozen=True)
class Estimate:
    """A score of every method with its interval, and of every difference from another method.

    Attributes:
        dims: names of the axes after the method, such as lead and threshold.
        value, low, high: (method, *dims); the interval is NaN where there are too few hours for one.
        differences: other method -> the same of method - other.
    """

    score: str
    dims: tuple[str, ...]
    value: Scores
    low: Scores
    high: Scores
    differences: dict[str, tuple[Scores, Scores, Scores]]


def estimates(verified: Verified, pixel_set: str, seed: int) -> list[Estimate]:
    """Every score of one set of pixels, compared with every baseline and reference."""
    at = PIXEL_SETS.index(pixel_set)
    weights = None
    if verified.block_count >= bootstrap.FEWEST_BLOCKS:
        weights = bootstrap.draws(verified.block_count, seed)
    made = []
    for names, table, dims in (
        (COUNTS, scores.EVENT_SCORES, ("lead", "threshold")),
        ((*MOMENTS, "frames"), scores.FIELD_SCORES, ("lead",)),
        (tuple(f"fraction_{name}" for name in COMPONENTS), scores.FSS, ("structure_lead", "threshold", "scale")),
    ):
        chosen = {name: verified.blocks[name][..., at] for name in names}
        made += list(_of_methods(verified, chosen, table, dims, weights))
    if pixel_set == "common":  # what is transformed
        power = verified.blocks["power"]
        truth = np.asarray(verified.blocks["observed_power"], np.float64)[:, None]
        observed = np.repeat(truth, power.shape[1], axis=1)
        chosen = {"power": power, "observed_power": observed}
        made += list(_of_methods(verified, chosen, scores.POWER, ("structure_lead", "band"), weights))
    if "bin_pairs" in verified.by_hour:
        names = (*probability.OF_BINS, "probability_squared_error")
        chosen = {name: verified.blocks[name][..., at] for name in names}
        made += list(_of_forecast(chosen, scores.PROBABILITY_SCORES, ("structure_lead", "threshold"), weights))
    if "ensemble_pairs" in verified.by_hour:
        chosen = {name: verified.blocks[name][..., at] for name in probability.OF_ENSEMBLES}
        made += list(_of_forecast(chosen, scores.ENSEMBLE_SCORES, ("structure_lead",), weights))
    return made


def _of_methods(
    verified: Verified, sums: Sums, table: dict[str, Score], dims: tuple[str, ...], weights: NDArray[np.float64] | None
) -> Iterator[Estimate]:
    total = {name: values.sum(axis=0) for name, values in sums.items()}
    blocks = verified.block_count
    drawn = None if weights is None else bootstrap.resampled(sums, weights)
    for name, score in table.items():
        value = score.of(total)
        samples = None if drawn is None else score.of(drawn)
        low, high = (
            bootstrap.no_interval(value.shape) if samples is None else bootstrap.interval(samples, value, blocks)
        )
        differences = {}
        for n, other in enumerate(verified.methods):
            spread = (
                bootstrap.no_interval(value.shape)
                if samples is None
                else bootstrap.interval(samples - samples[:, n : n + 1], value - value[n : n + 1], blocks)
            )
            differences[other] = (value - value[n : n + 1], *spread)
        yield Estimate(name, dims, value, low, high, differences)


def _of_forecast(
    sums: Sums, table: dict[str, Score], dims: tuple[str, ...], weights: NDArray[np.float64] | None
) -> Iterator[Estimate]:
    """Scores that only the forecast itself has."""
    drawn = None if weights is None else bootstrap.resampled(sums, weights)
    for name, score in table.items():
        value = score.of({key: values.sum(axis=0) for key, values in sums.items()})
        low, high = (
            bootstrap.no_interval(value.shape)
            if drawn is None
            else bootstrap.interval(score.of(drawn), value, len(next(iter(sums.values()))))
        )
        yield Estimate(name, dims, value[None], low[None], high[None], {})


def score_table(verified: Verified, found: dict[str, list[Estimate]]) -> pd.DataFrame:
    """All scores of all methods and pixel sets, a row each, with ``COLUMNS``.

    Args:
        found: the estimates of each pixel set.
    """
    frames = []
    coverage = verified.coverage()
    effective = verified.effective_forecasts
    forecasts = verified.total["observed"]
    for pixel_set in PIXEL_SETS:
        for one in found[pixel_set]:
            head = {"score": one.score, "pixel_set": pixel_set}
            for m, method in enumerate(verified.methods[: len(one.value)]):
                parts = (one.value[m], one.low[m], one.high[m])
                frames.append(_long(verified, one.dims, parts, head | {"method": method, "versus": ""}))
                for other, difference in one.differences.items():
                    if other != method:
                        parts = (difference[0][m], difference[1][m], difference[2][m])
                        frames.append(_long(verified, one.dims, parts, head | {"method": method, "versus": other}))
    table = pd.concat(frames, ignore_index=True)
    where = np.searchsorted(verified.axes["lead"], table["lead_minutes"].to_numpy())
    is_all = (table["pixel_set"] == "all_observed").to_numpy().astype(int)
    table["pairs"] = verified.total["pairs"][0][where, is_all].astype(np.int64)
    table["coverage"] = np.where(is_all, 1.0, coverage[where])
    table["forecasts"], table["effective_forecasts"] = forecasts[where], effective[where]
    table["hours"], table["blocks"] = len(verified.hours), verified.block_count
    table["model"], table["kind"] = verified.model, verified.kind
    return table[list(COLUMNS)]


def _long(
    verified: Verified, dims: tuple[str, ...], parts: tuple[Scores, Scores, Scores], head: dict[str, Any]
) -> pd.DataFrame:
    grids = np.meshgrid(*(verified.axes[dim] for dim in dims), indexing="ij")
    named = {dim: grid.ravel() for dim, grid in zip(dims, grids, strict=True)}
    value, low, high = (part.ravel() for part in parts)
    return pd.DataFrame(
        {
            **head,
            "lead_minutes": named.get("lead", named.get("structure_lead")),
            "threshold_mm_h": named.get("threshold", np.nan),
            "scale_km": named.get("scale", named.get("band", np.nan)),
            "value": value,
            "low": low,
            "high": high,
        }
    )

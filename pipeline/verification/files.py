"""Files of verification sums: one per domain, kind, model and day, replaced atomically."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from pipeline import packing
from pipeline.verification import scores
from pipeline.verification.sums import COUNTS, MOMENTS, PIXEL_SETS, PairSums

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ForecastSums:
    """Sums of one forecast and its baselines.

    Attributes:
        reference_time: seconds since 1970.
        observed: per lead, whether an observation came.
        sums: [method][lead][pixel set].
    """

    reference_time: int
    observed: list[bool]
    sums: list[list[list[PairSums]]]


def to_dataset(
    rows: Iterable[ForecastSums], methods: list[str], leads_minutes: list[int], thresholds_mm_h: list[float]
) -> xr.Dataset:
    """Arrays (reference_time, method, lead, pixel_set[, threshold]), in order of time."""
    ordered = sorted(rows, key=lambda row: row.reference_time)
    counts = np.array([[[[s.counts for s in sets] for sets in method] for method in r.sums] for r in ordered])
    moments = np.array([[[[s.moments for s in sets] for sets in method] for method in r.sums] for r in ordered])
    base = ("reference_time", "method", "lead", "pixel_set")
    variables: dict[str, xr.Variable] = {
        name: xr.Variable((*base, "threshold"), counts[..., n, :].astype(np.int64)) for n, name in enumerate(COUNTS)
    }
    variables |= {name: xr.Variable(base, moments[..., n]) for n, name in enumerate(MOMENTS)}
    variables["observed"] = xr.Variable(("reference_time", "lead"), np.array([r.observed for r in ordered], np.int8))
    variables["reference_time"] = xr.Variable(
        ("reference_time",),
        np.array([r.reference_time for r in ordered], np.int64),
        {"units": "seconds since 1970-01-01 00:00:00", "standard_name": "forecast_reference_time"},
    )
    variables["lead"] = xr.Variable(("lead",), np.array(leads_minutes, np.int32), {"units": "minutes"})
    variables["threshold"] = xr.Variable(("threshold",), np.array(thresholds_mm_h), {"units": "mm h-1"})
    attrs = {
        "format_version": FORMAT_VERSION,
        "methods": " ".join(methods),
        "pixel_sets": " ".join(PIXEL_SETS),
        "comment": "moments are in units of 0-255 pixels; common = pixels where all methods named here have a value",
    }
    return xr.Dataset(variables, attrs=attrs)


def merge(old: xr.Dataset | None, new: xr.Dataset) -> xr.Dataset:
    """``new`` beside those reference times of ``old`` that it does not replace.

    A file made for other methods, leads or thresholds is not mixed with: ``new`` then stands alone.
    """
    if old is None or not same_layout(old, new):
        return new
    kept = old.isel(reference_time=~np.isin(old["reference_time"].values, new["reference_time"].values))
    return xr.concat([kept, new], dim="reference_time", combine_attrs="override", data_vars="minimal").sortby(
        "reference_time"
    )


def same_layout(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two files of sums have the same methods, leads and thresholds."""
    same_methods = one.attrs.get("methods") == other.attrs.get("methods")
    return same_methods and all(np.array_equal(one[k].values, other[k].values) for k in ("lead", "threshold"))


def read(path: Path) -> xr.Dataset:
    """Load a file of sums.

    Raises:
        ValueError: another format version.
    """
    data = packing.read_packed(path)
    if int(data.attrs.get("format_version", -1)) != FORMAT_VERSION:
        raise ValueError(f"{path} has score format {data.attrs.get('format_version')}, expected {FORMAT_VERSION}")
    return data


def score_table(data: xr.Dataset) -> pd.DataFrame:
    """Scores over all reference times of ``data``: one row per method, pixel set, lead and threshold.

    Columns: method, pixel_set, lead_minutes, threshold_mm_h, csi, pod, far, hss, bias, mse, mae, correlation (these
    three in units of pixels and independent of the threshold), pairs, coverage (pairs of ``common`` per observed
    pair), observed_events, forecasts.
    """
    methods = str(data.attrs["methods"]).split()
    total = data[list(COUNTS + MOMENTS)].sum("reference_time")
    contributed = data["observed"].sum("reference_time").values
    rows = []
    for m, method in enumerate(methods):
        for p, pixel_set in enumerate(PIXEL_SETS):
            part = total.isel(method=m, pixel_set=p)
            everything = total["pairs"].isel(method=m, pixel_set=PIXEL_SETS.index("all_observed")).values
            moments = {name: part[name].values for name in MOMENTS}
            for t, threshold in enumerate(data["threshold"].values):
                h, s, f, c = (part[name].values[:, t] for name in COUNTS)
                rows.append(
                    pd.DataFrame(
                        {
                            "method": method,
                            "pixel_set": pixel_set,
                            "lead_minutes": data["lead"].values,
                            "threshold_mm_h": threshold,
                            "csi": scores.csi(h, s, f),
                            "pod": scores.pod(h, s),
                            "far": scores.far(h, f),
                            "hss": scores.hss(h, s, f, c),
                            "bias": scores.frequency_bias(h, s, f),
                            "mse": scores.mean(moments["squared_error"], moments["pairs"]),
                            "mae": scores.mean(moments["absolute_error"], moments["pairs"]),
                            "correlation": scores.correlation(
                                moments["product"],
                                moments["forecast_square"],
                                moments["observed_square"],
                                moments["pairs"],
                            ),
                            "pairs": moments["pairs"].astype(np.int64),
                            "coverage": scores.mean(moments["pairs"], everything),
                            "observed_events": h + s,
                            "forecasts": contributed,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)

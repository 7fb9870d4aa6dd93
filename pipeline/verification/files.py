"""Files of verification sums: one per domain, kind, compared methods and day, replaced atomically."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import packing
from pipeline.storage import Store
from pipeline.verification import scoring
from pipeline.verification.neighbourhood import COMPONENTS
from pipeline.verification.pairs import COUNTS, MOMENTS, PIXEL_SETS
from pipeline.verification.probability import OF_BINS, OF_ENSEMBLES
from pipeline.verification.rules import PROBABILITY_BINS, Rules
from pipeline.verification.spectrum import bands, rings

FORMAT_VERSION = 2

# of every variable, after reference_time; structure_lead are those lead times that have sums of windows and spectra
DIMENSIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(COUNTS, ("method", "lead", "threshold", "pixel_set")),
    **dict.fromkeys(MOMENTS, ("method", "lead", "pixel_set")),
    **{f"fraction_{name}": ("method", "structure_lead", "threshold", "scale", "pixel_set") for name in COMPONENTS},
    "power": ("method", "structure_lead", "band"),
    "observed_power": ("structure_lead", "band"),
    "observed": ("lead",),
    **dict.fromkeys(OF_BINS, ("structure_lead", "threshold", "probability_bin", "pixel_set")),
    "probability_squared_error": ("structure_lead", "threshold", "pixel_set"),
    **dict.fromkeys(OF_ENSEMBLES, ("structure_lead", "pixel_set")),
    "observations_digest": ("byte",),
    # JSON of ``place_records``, UTF-8, filled up with 0
    "places": ("character",),
}
# units of the axes that have values
AXES = {
    "lead": "minutes",
    "structure_lead": "minutes",
    "threshold": "mm h-1",
    "scale": "km",
    "band": "km",
    "probability_bin": "1",
}


@dataclass(frozen=True)
class ForecastSums:
    """Sums of one forecast and of what it is compared with.

    Attributes:
        reference_time: seconds since 1970.
        observations_digest: SHA-256 in hexadecimal of what they depend on, see ``verify``.
        places: what was said of places and what came there, see ``place_records``.
    """

    reference_time: int
    observations_digest: str
    sums: scoring.Sums
    places: dict[str, Any] = field(default_factory=dict)


def to_dataset(rows: Iterable[ForecastSums], methods: list[str], rules: Rules) -> xr.Dataset:
    """Arrays with ``reference_time`` first, in order of time; what only some forecasts have is 0 in the others."""
    ordered = sorted(rows, key=lambda row: row.reference_time)
    said = [json.dumps(row.places, sort_keys=True).encode() for row in ordered]
    longest = max(map(len, said))
    content = [
        {
            **row.sums,
            "observations_digest": np.frombuffer(bytes.fromhex(row.observations_digest), np.uint8),
            "places": np.frombuffer(text.ljust(longest, b"\0"), np.uint8),
        }
        for row, text in zip(ordered, said, strict=True)
    ]
    shapes = {name: values for one in content for name, values in one.items()}
    arrays: dict[str, NDArray[Any]] = {
        name: np.stack([one.get(name, np.zeros_like(shapes[name])) for one in content])
        for name in DIMENSIONS
        if name in shapes
    }
    arrays["reference_time"] = np.array([row.reference_time for row in ordered], np.int64)
    leads = np.array(rules.leads_minutes, np.int32)
    arrays |= {
        "lead": leads,
        "structure_lead": leads[list(rules.structure_leads)],
        "threshold": np.array(rules.thresholds_mm_h),
        "scale": np.array(rules.scales_km),
        "band": np.round(bands(rings(rules.grid.shape, rules.grid.ground_spacing_km))[1], 3),
    }
    if "bin_pairs" in shapes:
        arrays["probability_bin"] = np.arange(PROBABILITY_BINS) / (PROBABILITY_BINS - 1)
    attrs = {
        "format_version": FORMAT_VERSION,
        "methods": " ".join(methods),
        "pixel_sets": " ".join(PIXEL_SETS),
        "rules": rules.to_json(),
        "comment": "sums over pairs, in units of 0-255 pixels unless named rain (mm h-1); power in dB2 per band; "
        "common = pixels where all methods named here and the observation have a value",
    }
    return _dataset(arrays, attrs)


def _dataset(arrays: Mapping[str, NDArray[Any]], attrs: dict[str, Any]) -> xr.Dataset:
    variables: dict[str, xr.Variable] = {}
    for name, values in arrays.items():
        if name == "reference_time":
            about = {"units": "seconds since 1970-01-01 00:00:00", "standard_name": "forecast_reference_time"}
            variables[name] = xr.Variable((name,), values, about)
        elif name in AXES:
            variables[name] = xr.Variable((name,), values, {"units": AXES[name]})
        else:
            variables[name] = xr.Variable(("reference_time", *DIMENSIONS[name]), values)
    return xr.Dataset(variables, attrs=attrs)


def digests(data: xr.Dataset) -> dict[int, str]:
    """Observations digest of each reference time (seconds since 1970)."""
    made = [row.astype(np.uint8).tobytes().hex() for row in data["observations_digest"].values]
    return dict(zip(data["reference_time"].values.tolist(), made, strict=True))


def places(data: xr.Dataset) -> list[dict[str, Any]]:
    """What was said of places, and what came there, of each reference time."""
    return [json.loads(row.astype(np.uint8).tobytes().rstrip(b"\0")) for row in data["places"].values]


def merge(old: xr.Dataset | None, new: xr.Dataset) -> xr.Dataset:
    """``new`` beside those reference times of ``old``, of the same methods and rules, that it does not replace."""
    if old is None:
        return new
    kept = old.isel(reference_time=~np.isin(old["reference_time"].values, new["reference_time"].values))
    return join([kept, new]).sortby("reference_time")


def join(parts: list[xr.Dataset]) -> xr.Dataset:
    """Reference times of files of one layout in one dataset; what a part does not have is 0 there."""
    longest = max(part.sizes["character"] for part in parts)
    parts = [part.pad(character=(0, longest - part.sizes["character"]), constant_values=0) for part in parts]
    models = {name: part[name] for part in parts for name in part.variables}
    filled = []
    for part in parts:
        absent = {name: one for name, one in models.items() if name not in part.variables}
        coordinates = {name: one.variable for name, one in absent.items() if one.dims == (name,)}
        zeros = {
            name: xr.Variable(one.dims, np.zeros((part.sizes["reference_time"], *one.shape[1:]), one.dtype))
            for name, one in absent.items()
            if name not in coordinates
        }
        filled.append(part.assign({**zeros, **coordinates}) if absent else part)
    return xr.concat(filled, dim="reference_time", combine_attrs="override", data_vars="minimal")


def has_digest(store: Store, path: Path, content_digest: str) -> bool:
    """Whether a file is there, can be opened, and says that it has this content."""
    try:
        return bool(packing.read_arrays(store.get(path), ())[1].get("content_digest") == content_digest)
    except OSError:
        return False


def write(data: xr.Dataset, path: Path) -> str:
    """Write a file of sums; returns its content digest."""
    return packing.write(data, path, whole=True)


def read(path: Path) -> xr.Dataset:
    """Load a file of sums.

    Raises:
        OSError, ValueError: it is damaged, or of another format version.
    """
    # not through xarray, which takes ten times as long to open a file of many variables
    arrays, attrs = packing.read_arrays(path, (*DIMENSIONS, *AXES, "reference_time"))
    if int(attrs.get("format_version", -1)) != FORMAT_VERSION:
        raise ValueError(f"{path} has score format {attrs.get('format_version')}, expected {FORMAT_VERSION}")
    missing = [name for name in (*COUNTS, *MOMENTS, "observations_digest", "places", *AXES) if name not in arrays]
    if missing and missing != ["probability_bin"]:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    data = _dataset(arrays, attrs)
    packing.checked_digest(data, path)
    return data

"""The forecast as a CF-1.8 / ACDD-1.3 NetCDF file, and the companion with the baselines' frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import packing, times
from pipeline.advection import amounts_along_motion, estimated_motion
from pipeline.domain import AMOUNT_MINUTES, Domain
from pipeline.frames.grayscale import ADVECTED, ECHO, NO_COVERAGE, NO_ECHO, Pixels, rate_table, reflectivity_of_pixel
from pipeline.frames.sequences import InputSequence
from pipeline.product_axes import EPOCH_UNITS, coordinates, extent, mapped
from pipeline.version import software_version

FORMAT_VERSION = 2
BASELINES_FORMAT_VERSION = 1
LAST_FRAME = "last_frame"
RATE_STEP_MM_H = 0.02
REFLECTIVITY_STEP_DB = 0.1
ACCUMULATION_STEP_MM = 0.05
PROBABILITY_STEP = 0.005


@dataclass(frozen=True)
class ForecastFrames:
    """A forecast before it is written.

    Attributes:
        pixels: (lead, channels, rows, columns) uint8; 0 below the drizzle floor.
        state: (lead, rows, columns) uint8: echo, no echo, no coverage, or advected (extrapolated inflow).
        method: what made it: the model's name, ``optical_flow`` or ``last_frame``.
        model_checksum: of the model; empty for a baseline.
        fallback: why it is not the domain's model; empty if it is.
        asked: name of the model that should have made it.
        limits: what a user should know of the model, from its card.
        exceedance: for thresholds of the domain (mm/h) the probability that the rain rate reaches them,
            (lead, rows, columns) uint8 in 1/255; empty if the method gives none.
    """

    pixels: Pixels
    state: Pixels
    method: str
    model_checksum: str
    fallback: str
    asked: str
    limits: str = ""
    exceedance: dict[float, Pixels] = field(default_factory=dict)

    @property
    def rain(self) -> Pixels:
        """The first channel, (lead, rows, columns)."""
        return self.pixels[:, 0]


@dataclass(frozen=True)
class Identity:
    """Which product this is."""

    reference_time: datetime
    kind: str  # issued, hindcast or shadow
    revision: int
    issue_time: datetime


def lead_states(pixels: Pixels, covered: NDArray[np.bool_], extrapolated: NDArray[np.bool_]) -> Pixels:
    """Cell states of forecast frames.

    Args:
        pixels: (lead, rows, columns), 0 where no rain is forecast.
        covered: (rows, columns), observed at the reference time.
        extrapolated: (lead, rows, columns), the value came over the edge of the coverage.
    """
    state = np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8)
    state[extrapolated] = ADVECTED
    state[:, ~covered] = NO_COVERAGE
    return state


def analysis(domain: Domain, sequence: InputSequence) -> NDArray[np.float32]:
    """Rain rate of the newest observed frame, mm/h, (rows, columns); NaN where it was not observed."""
    rates = rate_table(domain.zr, domain.scale, sequence.source.drizzle_floor_mm_h)
    return np.where(sequence.observed[-1], rates[sequence.rain[-1]], np.float32(np.nan))


def build(
    domain: Domain,
    sequence: InputSequence,
    forecast: ForecastFrames,
    identity: Identity,
    quality: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """The product with packed variables, rows from north to south.

    Args:
        quality: attributes that say how good such forecasts were lately; no part of the content digest.
    """
    rates = rate_table(domain.zr, domain.scale, sequence.source.drizzle_floor_mm_h)
    uncovered = forecast.state == NO_COVERAGE
    rate = np.where(uncovered, np.nan, rates[forecast.rain])
    leads = [(n + 1) * domain.cadence for n in range(len(forecast.pixels))]
    grid = sequence.source.grid
    y, x = ("latitude", "longitude") if grid.is_geographic else ("y", "x")
    fields = ("time", y, x)
    places = "" if grid.is_geographic else " lat lon"
    located = {**mapped(grid), "coordinates": "forecast_reference_time forecast_period" + places}
    # frames that are means over an interval give forecasts that are
    averaged = {"cell_methods": "time: mean"} if sequence.source.interval_s else {}
    model_result = {"coverage_content_type": "modelResult"}
    flags = {
        "long_name": "state of the forecast cell",
        "standard_name": "status_flag",
        "flag_values": np.array([ECHO, NO_COVERAGE, NO_ECHO, ADVECTED], np.int8),
        "flag_meanings": "echo no_coverage no_echo extrapolated_inflow",
        "coverage_content_type": "qualityInformation",
        **located,
    }

    def reflectivity(channel: int, text: str) -> xr.Variable:
        dbz = reflectivity_of_pixel(forecast.pixels[:, channel], domain.scale)
        attrs = {
            "standard_name": "equivalent_reflectivity_factor",
            "long_name": f"forecast radar reflectivity factor{text}",
            "units": "dBZ",
            "comment": f"no echo is written as {domain.scale.dbz_min:g} dBZ, the bottom of the scale",
            "ancillary_variables": "status_flag",
        }
        about = {**attrs, **averaged, **located, **model_result}
        return packing.packed(fields, np.where(uncovered, np.nan, dbz), REFLECTIVITY_STEP_DB, about)

    variables: dict[str, Any] = {
        "rainfall_rate": packing.packed(
            fields,
            rate,
            RATE_STEP_MM_H,
            {
                "standard_name": "rainfall_rate",
                "long_name": "forecast rain rate",
                "units": "mm h-1",
                "ancillary_variables": "status_flag",
                **averaged,
                **located,
                **model_result,
            },
        ),
        **{name: reflectivity(n, text) for n, (name, text) in enumerate(_reflectivities(domain))},
        "status_flag": xr.Variable(fields, forecast.state.astype(np.int8), flags),
        **_accumulations(domain, sequence, forecast.method, rate, (y, x), places),
        **_probabilities(forecast.exceedance, uncovered, fields, {**located, **model_result}),
        **coordinates(sequence, leads),
    }
    attrs = _attributes(domain, sequence, forecast, identity, leads) | dict(quality or {})
    return xr.Dataset(variables, attrs=attrs)


def _reflectivities(domain: Domain) -> list[tuple[str, str]]:
    """Name of each channel's variable, and what to say of it; the first is the one that rain is made of."""
    name = "equivalent_reflectivity_factor"
    first, *others = domain.products
    return [(name, "" if not others else f", {first}"), *((f"{name}_{other}", f", {other}") for other in others)]


def _probabilities(
    exceedance: dict[float, Pixels], uncovered: NDArray[np.bool_], fields: tuple[str, ...], about: dict[str, Any]
) -> dict[str, xr.Variable]:
    if not exceedance:
        return {}
    shares = np.stack([np.where(uncovered, np.nan, values / np.float32(255)) for values in exceedance.values()])
    attrs = {
        "long_name": "probability that the rain rate is at or above the threshold",
        "units": "1",
        "ancillary_variables": "status_flag",
    }
    levels = {
        "standard_name": "rainfall_rate",
        "long_name": "threshold of the rain rate",
        "units": "mm h-1",
        "coverage_content_type": "coordinate",
    }
    return {
        "probability_of_exceedance": packing.packed(
            ("threshold", *fields), shares, PROBABILITY_STEP, {**attrs, **about}
        ),
        "threshold": xr.Variable(("threshold",), np.array(list(exceedance), np.float64), levels),
    }


def amount_steps(domain: Domain) -> list[int]:
    """Numbers of frames over which amounts are given: to 30, 60 and 120 minutes, or to the horizon if that is less."""
    steps = [-(-minutes // domain.cadence_minutes) for minutes in AMOUNT_MINUTES]
    return [n for n in steps if n <= domain.lead_frames] or [domain.lead_frames]


def _accumulations(
    domain: Domain,
    sequence: InputSequence,
    method: str,
    rate: NDArray[np.floating[Any]],
    axes: tuple[str, str],
    places: str,
) -> dict[str, xr.Variable]:
    """Rain amounts from the reference time on, see ``amount_steps``.

    Frames that are means over an interval add up; instantaneous ones are integrated along the motion, from the newest
    observed frame on. A forecast by the last frame stands still, and so does its rain.
    """
    if sequence.source.interval_s:
        amounts = rate * (domain.cadence_minutes / 60)
    else:
        moves = method != LAST_FRAME and bool((rate > 0).any())
        motion = (
            estimated_motion(sequence.rain, sequence.observed) if moves else np.zeros((2, *rate.shape[1:]), np.float32)
        )
        series = np.concatenate((analysis(domain, sequence)[None], rate))
        amounts = amounts_along_motion(series, motion, domain.cadence_minutes / 60)
    steps = amount_steps(domain)
    totals = np.stack([amounts[:n].sum(axis=0) for n in steps])
    start = times.seconds(sequence.reference_time)
    ends = [start + 60 * n * domain.cadence_minutes for n in steps]
    dim = "accumulation_time"
    attrs = {
        "standard_name": "lwe_thickness_of_precipitation_amount",
        "long_name": "forecast rain amount from the reference time on",
        "units": "mm",
        "comment": (
            f"sum over the frames, each a mean over {sequence.source.interval_s / 60:g} minutes that stands for "
            f"{domain.cadence_minutes}"
            if sequence.source.interval_s
            else "rates from the newest observed frame on, moved along the motion of the newest frames between two "
            "frames, blended and integrated by the trapezoid rule"
        ),
        "cell_methods": f"{dim}: sum",
        "coverage_content_type": "modelResult",
        **mapped(sequence.source.grid),
        "coordinates": "forecast_reference_time" + places,
    }
    about = {
        "standard_name": "time",
        "long_name": "end of the accumulation interval",
        "units": EPOCH_UNITS,
        "calendar": "standard",
        "bounds": f"{dim}_bounds",
        "coverage_content_type": "coordinate",
    }
    return {
        "rainfall_amount": packing.packed((dim, *axes), totals, ACCUMULATION_STEP_MM, attrs),
        dim: xr.Variable((dim,), np.array(ends, np.float64), about),
        f"{dim}_bounds": xr.Variable((dim, "bounds"), np.array([[start, end] for end in ends], np.float64)),
    }


def _attributes(
    domain: Domain, sequence: InputSequence, forecast: ForecastFrames, identity: Identity, leads: list[timedelta]
) -> dict[str, Any]:
    grid = sequence.source.grid
    west, east, south, north = extent(grid)
    corners = ((south, west), (north, west), (north, east), (south, east), (south, west))
    reference = times.iso(identity.reference_time)
    issued = times.iso(identity.issue_time)
    first, last = identity.reference_time + leads[0], identity.reference_time + leads[-1]
    source = domain.source.model_dump().get("reader", domain.source.kind)
    return {
        "Conventions": "CF-1.8, ACDD-1.3",
        "title": f"Precipitation nowcast for {domain.name}, {reference}",
        "summary": (
            f"Rain rate and reflectivity every {domain.cadence_minutes} minutes to {leads[-1]} after {reference}, "
            f"made by {forecast.method} from {len(sequence.input_times)} measured radar frames."
        ),
        "keywords": "precipitation nowcast, weather radar, rainfall rate",
        "institution": domain.institution,
        "creator_name": "nowcast-pipeline",
        "publisher_name": "nowcast-pipeline",
        "license": domain.license,
        "source": f"weather radar ({source}), method {forecast.method}",
        "references": "Shi et al. 2015; Wu 2019; Germann and Zawadzki 2002",
        "id": f"{domain.name}/{identity.kind}/{times.compact(identity.reference_time)}/r{identity.revision}",
        "naming_authority": "nowcast-pipeline",
        "standard_name_vocabulary": "CF Standard Name Table v93",
        "processing_level": "forecast",
        "format_version": FORMAT_VERSION,
        "domain": domain.name,
        "product": " ".join(domain.products),
        "cadence_minutes": domain.cadence_minutes,
        "kind": identity.kind,
        "revision": identity.revision,
        "reference_time": reference,
        "method": forecast.method,
        "model_name": forecast.asked,
        "model_checksum_sha256": forecast.model_checksum,
        "model_limits": forecast.limits,
        "fallback_reason": forecast.fallback,
        "inputs_digest": sequence.digest(domain),
        "input_times": " ".join(times.iso(t) for t in sequence.input_times),
        "filled_times": " ".join(times.iso(t) for t in sequence.filled_times),
        "missing_times": " ".join(times.iso(t) for t in sequence.missing_times),
        "input_offsets_s": " ".join(f"{offset:g}" for offset in sequence.offsets_s),
        "radars_used": " ".join(sequence.radars),
        "radars_carried_on": " ".join(sequence.radars_carried_on),
        "input_correlation": "" if sequence.correlation is None else f"{sequence.correlation:.6f}",
        "dry_input": int(sequence.is_dry),
        "frozen_feed": int(sequence.is_frozen),
        "scale_dbz": [domain.scale.dbz_min, domain.scale.dbz_max],
        "z_r": [domain.zr.a, domain.zr.b],
        "drizzle_floor_mm_h": round(sequence.source.drizzle_floor_mm_h, 6),
        "time_coverage_start": times.iso(first),
        "time_coverage_end": times.iso(last),
        "time_coverage_resolution": f"PT{domain.cadence_minutes}M",
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
        "geospatial_lat_units": "degrees_north",
        "geospatial_lon_units": "degrees_east",
        "geospatial_bounds": "POLYGON ((" + ", ".join(f"{lat} {lon}" for lat, lon in corners) + "))",
        "date_created": issued,
        "issue_time": issued,
        "software_version": software_version(),
        "history": f"{issued} written by nowcast-pipeline {software_version()}",
    }


def build_baselines(forecasts: dict[str, Pixels | None], leads: int, shape: tuple[int, int]) -> xr.Dataset:
    """Frames of the baselines: ``pixel`` (method, lead, y, x) uint8; a method that could not run is not available."""
    nothing = np.zeros((leads, *shape), np.uint8)
    pixels = np.stack([nothing if p is None else p for p in forecasts.values()])
    return xr.Dataset(
        {
            "pixel": xr.Variable(("method", "lead", "y", "x"), pixels, {"long_name": "0-255 frame"}),
            "available": xr.Variable(("method",), np.array([p is not None for p in forecasts.values()], np.int8)),
        },
        attrs={"format_version": BASELINES_FORMAT_VERSION, "methods": " ".join(forecasts)},
    )


def read_baselines(path: Path) -> dict[str, Pixels | None]:
    """Inverse of ``build_baselines``."""
    arrays, attrs = packing.read_arrays(path, ("pixel", "available"))
    names = str(attrs["methods"]).split()
    return {name: arrays["pixel"][n] if arrays["available"][n] else None for n, name in enumerate(names)}


def read_forecast(path: Path, domain: Domain) -> tuple[Pixels, Pixels, dict[str, Any]]:
    """Pixels of the first channel and states (lead, rows, columns) of a product, and its attributes.

    The packing step of 0.1 dB is finer than half a pixel, so the pixels come back exactly.

    Raises:
        ValueError: the product has another dBZ scale than the domain.
    """
    from pipeline.frames.grayscale import pixel_of_reflectivity

    arrays, attrs = packing.read_arrays(path, ("equivalent_reflectivity_factor", "status_flag"))
    scale = [float(v) for v in attrs["scale_dbz"]]
    if scale != [domain.scale.dbz_min, domain.scale.dbz_max]:
        raise ValueError(
            f"{path} has the dBZ scale {scale}, the domain [{domain.scale.dbz_min}, {domain.scale.dbz_max}]"
        )
    raw, state = arrays["equivalent_reflectivity_factor"], arrays["status_flag"].astype(np.uint8)
    # by a table of all packed values, which is many times faster; a fill value is no echo
    packed = np.arange(65536).astype(np.uint16).view(np.int16)
    dbz = np.where(packed == packing.FILL, domain.scale.dbz_min, packed * REFLECTIVITY_STEP_DB)
    return pixel_of_reflectivity(dbz, domain.scale)[raw.view(np.uint16)], state, attrs

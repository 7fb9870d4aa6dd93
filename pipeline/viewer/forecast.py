"""What the page shows of one forecast: frames as small PNGs, palettes, and what the product says of itself."""

import base64
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from pipeline import packing, product, times
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, NotForecast, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import ADVECTED, ECHO, NO_COVERAGE, NO_ECHO, Frame, Pixels, pixel_of_rate, rate_table
from pipeline.storage import Store
from pipeline.verification.figures import NO_COVERAGE_COLOUR, RATE_COLOURS, RATE_LEVELS
from pipeline.viewer.mercator import MercatorImage, mercator_image

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
PAST = timedelta(hours=1)
# of an image's values; pixel 255 of a frame is shown as 254, a rate that few hailstorms reach
NOTHING_SEEN, HIGHEST = 255, 254
HEAVIEST_COLOUR = "#2d0b3a"  # above the last of RATE_LEVELS
PROBABILITY_LEVELS = (10, 25, 50, 75, 90)
PROBABILITY_COLOURS = ("#fdd0a2", "#fdae6b", "#f16913", "#b63c02", "#5f1f02")
# of the product, shown as they are
TOLD = (
    "reference_time",
    "issue_time",
    "kind",
    "revision",
    "method",
    "model_name",
    "model_limits",
    "fallback_reason",
    "institution",
    "license",
    "software_version",
)


@dataclass(frozen=True)
class Shown:
    """The forecast of a page.

    Attributes:
        content: what the page reads, JSON values.
        image: its frames' place on the map.
    """

    content: dict[str, Any]
    image: MercatorImage


def read_shown(domain: Domain, store: Store, path: Path) -> Shown:
    """Read a product, what lies beside it, and the frames observed in the hour before it.

    Raises:
        NotForecast: the archive has no frame, so that nobody knows where the cells lie.
        SettingsError: the archive was made with other settings.
        StoreUnavailable: the product is damaged, or of another grid than the archive.
    """
    archive = Archive(store, domain)
    source = archive.source()
    if source is None:
        raise NotForecast(f"the archive of {domain.name} has no frame, and so no grid to show {path.name} on")
    try:
        data = packing.read_packed(path)
        packing.checked_digest(data, path)
        pixels, state, attrs = product.read_forecast(path, domain)
        probabilities = read_probabilities(data)
    except (OSError, ValueError, KeyError) as err:
        raise StoreUnavailable(f"the product {path} is damaged: {err}") from err
    if pixels.shape[1:] != source.grid.shape:
        raise StoreUnavailable(f"{path} has {pixels.shape[1:]} cells, the archive's frames have {source.grid.shape}")
    image = mercator_image(source.grid)
    notes: list[str] = []
    baselines = _beside(store.baselines(path), product.read_baselines, "other methods", notes) or {}
    covered = state[0] != NO_COVERAGE
    methods = {str(attrs["method"]): pixels} | {
        name: frames for name, frames in baselines.items() if frames is not None and name != attrs["method"]
    }
    reference_time = times.parse_time(str(attrs["reference_time"]))
    floor = float(attrs["drizzle_floor_mm_h"])
    rates = rate_table(domain.zr, domain.scale, floor)
    past = _past(archive, domain, reference_time, image)
    # the loop starts with the oldest frame there is, and ends its past with the reference time
    first = next((n for n, shown in enumerate(past) if shown["frame"] is not None), len(past) - 1)
    content = {
        "format_version": FORMAT_VERSION,
        "domain": domain.name,
        "cadence_minutes": domain.cadence_minutes,
        "bounds": [[image.south, image.west], [image.north, image.east]],
        "rows": image.source.shape[0],
        "columns": image.source.shape[1],
        "product_shape": list(source.grid.shape),
        "product_spacing_m": round(source.grid.spacing_m),
        "rates_mm_h": [float(f"{rate:.4g}") for rate in rates],
        "rate_classes": _rate_classes(domain, floor),
        "probability_classes": [
            {"from": level, "value": level, "colour": colour}
            for level, colour in zip(PROBABILITY_LEVELS, PROBABILITY_COLOURS, strict=True)
        ],
        "no_coverage_colour": NO_COVERAGE_COLOUR,
        "past": past[first:],
        "gaps": [shown["time"] for shown in past if shown["frame"] is None],
        "lead_times": [times.iso(reference_time + (n + 1) * domain.cadence) for n in range(len(pixels))],
        "methods": [
            {"name": name, "frames": [_png(image, _seen(frame, covered)) for frame in frames]}
            for name, frames in methods.items()
        ],
        "probabilities": [
            {"threshold_mm_h": threshold, "frames": [_png(image, frame) for frame in frames]}
            for threshold, frames in probabilities.items()
        ],
        "places": _beside(path.with_suffix(".places.json"), read_places, "places", notes) or [],
        **{key: _plain(attrs[key]) for key in TOLD},
        "filled_times": str(attrs["filled_times"]).split(),
        "missing_times": str(attrs["missing_times"]).split(),
        "verified": {key: _plain(value) for key, value in attrs.items() if key.startswith("verified_")},
        "notes": notes,
    }
    return Shown(content, image)


def read_probabilities(data: xr.Dataset) -> dict[float, Pixels]:
    """Probability of exceedance of a packed product, percent (lead, rows, columns) by threshold in mm/h.

    Missing values are 255; a product without the variable gives none.
    """
    if "probability_of_exceedance" not in data:
        return {}
    packed = data["probability_of_exceedance"].transpose("threshold", "time", ...)
    raw = packed.values
    fraction = raw * float(packed.attrs.get("scale_factor", 1)) + float(packed.attrs.get("add_offset", 0))
    missing = np.isnan(fraction) | (raw == packed.attrs.get("_FillValue", packing.FILL))
    percent = np.where(missing, NOTHING_SEEN, np.clip(np.floor(100 * np.where(missing, 0, fraction) + 0.5), 0, 100))
    return {
        float(f"{threshold:g}"): values
        for threshold, values in zip(data["threshold"].values, percent.astype(np.uint8), strict=True)
    }


def read_places(path: Path) -> list[dict[str, Any]]:
    """Points and areas of a product's places, only what the page draws.

    Raises:
        ValueError, KeyError, TypeError: not a file of places.
    """
    found = []
    for place in json.loads(path.read_text(encoding="utf-8"))["places"]:
        where: dict[str, Any]
        if place["kind"] == "point":
            where = {"longitude": float(place["longitude"]), "latitude": float(place["latitude"])}
        else:
            where = {"rings": [[[float(lon), float(lat)] for lon, lat, *_ in ring] for ring in place["rings"]]}
        found.append({"name": str(place["name"]), "kind": str(place["kind"]), **where})
    return found


def _beside(path: Path, read: Callable[[Path], Any], what: str, notes: list[str]) -> Any:
    """What a file beside the product holds; a damaged one leaves the forecast itself to be shown, and says so."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("%s is damaged: %s", path, err)
        notes.append(f"The file of the {what} is damaged ({path.name}); they are not shown.")
        return None


def _rate_classes(domain: Domain, floor_mm_h: float) -> list[dict[str, Any]]:
    """Classes of the palette by their first pixel: an event of a threshold is its pixel or more, everywhere."""
    first = max(1, pixel_of_rate(floor_mm_h, domain.zr, domain.scale))
    return [
        {"from": level, "value": max(first, pixel_of_rate(level, domain.zr, domain.scale)), "colour": colour}
        for level, colour in zip(RATE_LEVELS, (*RATE_COLOURS, HEAVIEST_COLOUR), strict=True)
    ]


def _past(archive: Archive, domain: Domain, reference_time: datetime, image: MercatorImage) -> list[dict[str, Any]]:
    """Observed frames of the last hour, oldest first; a time without one has no image."""
    shown = []
    for time in times.slots(reference_time - PAST, reference_time, domain.cadence):
        frame = _observed(archive, time)
        pixels = None if frame is None else _png(image, _seen(frame.rain, _has_value(frame)))
        shown.append({"time": times.iso(time), "frame": pixels})
    return shown


def _observed(archive: Archive, time: datetime) -> Frame | None:
    try:
        return archive.read(time)
    except DamagedFrame as err:
        log.warning("%s", err)
        return None


def _has_value(frame: Frame) -> NDArray[np.bool_]:
    """Cells that were measured, or carried on from the frame before."""
    return np.isin(frame.state, (ECHO, NO_ECHO, ADVECTED))


def _seen(pixels: Pixels, covered: NDArray[np.bool_]) -> Pixels:
    return np.where(covered, np.minimum(pixels, HIGHEST), NOTHING_SEEN).astype(np.uint8)


def _png(image: MercatorImage, field: Pixels) -> dict[str, Any]:
    """A field of the domain on the map, as a data URI, with the sum that tells whether a browser decoded it truly."""
    values = image.of(field, NOTHING_SEEN)
    buffer = io.BytesIO()
    Image.fromarray(values, "L").save(buffer, format="png", optimize=True)
    return {
        "png": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "sum": int(values.sum(dtype=np.int64)),
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

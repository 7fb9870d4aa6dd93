"""What the page shows of one forecast: its frames and those observed before, and what the product says of itself."""

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline import packing, product, times
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, NotForecast, StoreUnavailable, reading
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import ADVECTED, ECHO, NO_COVERAGE, NO_ECHO, Frame, Pixels, rate_table
from pipeline.storage import Store
from pipeline.viewer.images import NOTHING_SEEN, png, probability_classes, rate_classes, seen
from pipeline.viewer.mercator import MercatorImage, mercator_image

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
PAST = timedelta(hours=1)
# attributes of the product that the page shows as they are
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


def read_forecast(domain: Domain, store: Store, path: Path) -> tuple[dict[str, Any], MercatorImage]:
    """What the page reads of a product, as JSON values, and where its cells lie on the map.

    Raises:
        NotForecast: the archive has no frame and so no grid, or the grid lies too near to a pole for the map.
        SettingsError: the archive was made with other settings.
        StoreUnavailable: the product is damaged, or of another grid than the archive.
    """
    archive = Archive(store, domain)
    source = archive.source()
    if source is None:
        raise NotForecast(f"the archive of {domain.name} has no frame, and so no grid to show {path.name} on")
    try:
        data = packing.read_packed(store.get(path))
        packing.checked_digest(data, path)
        pixels, state, attrs = product.read_forecast(path, domain)
        probabilities = read_probabilities(data)
    except (OSError, ValueError, KeyError) as err:
        raise StoreUnavailable(f"the product {path} is damaged: {err}") from err
    if pixels.shape[1:] != source.grid.shape:
        raise StoreUnavailable(f"{path} has {pixels.shape[1:]} cells, the archive's frames have {source.grid.shape}")
    image = mercator_image(source.grid)
    notes: list[str] = []
    methods = {str(attrs["method"]): pixels}
    baselines = _beside(store, store.baselines(path), product.read_baselines, "other methods", notes)
    for name, frames in (baselines or {}).items():
        if frames is not None:
            methods.setdefault(name, frames)
    reference_time = times.parse_time(str(attrs["reference_time"]))
    floor = float(attrs["drizzle_floor_mm_h"])
    past = _past(archive, domain, reference_time, image)
    # the loop starts with the oldest frame there is; the gaps are named all the same
    first = next((n for n, shown in enumerate(past) if shown["frame"] is not None), len(past) - 1)
    draw, covered = partial(png, image), state[0] != NO_COVERAGE
    content = {
        "format_version": FORMAT_VERSION,
        "domain": domain.name,
        "cadence_minutes": domain.cadence_minutes,
        "bounds": [[image.south, image.west], [image.north, image.east]],
        "rows": image.source.shape[0],
        "columns": image.source.shape[1],
        "product_shape": list(source.grid.shape),
        "product_spacing_m": round(source.grid.spacing_m),
        "rates_mm_h": [float(f"{rate:.4g}") for rate in rate_table(domain.zr, domain.scale, floor)],
        "rate_classes": rate_classes(domain, floor),
        "probability_classes": probability_classes(),
        "past": past[first:],
        "gaps": [shown["time"] for shown in past if shown["frame"] is None],
        "lead_times": [times.iso(reference_time + (n + 1) * domain.cadence) for n in range(len(pixels))],
        "methods": [
            {"name": name, "frames": [draw(seen(frame, covered)) for frame in frames]}
            for name, frames in methods.items()
        ],
        "probabilities": [
            {"threshold_mm_h": threshold, "frames": [draw(frame) for frame in frames]}
            for threshold, frames in probabilities.items()
        ],
        "places": _beside(store, store.place_forecasts(path), read_places, "places", notes) or [],
        **{key: _plain(attrs[key]) for key in TOLD},
        "filled_times": str(attrs["filled_times"]).split(),
        "missing_times": str(attrs["missing_times"]).split(),
        "verified": {key: str(value) for key, value in attrs.items() if key.startswith("verified_")},
        "notes": notes,
    }
    return content, image


def read_probabilities(data: xr.Dataset) -> dict[float, Pixels]:
    """Probability of exceedance of a packed product, percent (lead, rows, columns) by threshold in mm/h.

    Missing values are 255; a product without the variable gives none.

    Raises:
        ValueError: a probability is not a fraction between 0 and 1.
    """
    if "probability_of_exceedance" not in data:
        return {}
    packed = data["probability_of_exceedance"].transpose("threshold", "time", ...)
    missing = np.asarray(packed.values == packed.attrs.get("_FillValue", packing.FILL)) | np.isnan(packed.values)
    scale, offset = float(packed.attrs.get("scale_factor", 1)), float(packed.attrs.get("add_offset", 0))
    fraction = np.where(missing, 0, packed.values * scale + offset)
    if fraction.min() < 0 or fraction.max() > 1:
        raise ValueError(f"probability_of_exceedance: expected 0 to 1, found {fraction.min():g} to {fraction.max():g}")
    percent = np.where(missing, NOTHING_SEEN, np.floor(100 * fraction + 0.5)).astype(np.uint8)
    thresholds = [float(f"{threshold:g}") for threshold in data["threshold"].values]
    return dict(zip(thresholds, percent, strict=True))


def read_places(path: Path) -> list[dict[str, Any]]:
    """Points and areas of a product's file of places, only what the page draws.

    Raises:
        ValueError, KeyError, TypeError: not a file of places.
    """
    found = []
    with reading(path):
        places = json.loads(path.read_text(encoding="utf-8"))["places"]
    for place in places:
        where: dict[str, Any]
        if place["kind"] == "point":
            where = {"longitude": float(place["longitude"]), "latitude": float(place["latitude"])}
        else:
            where = {"rings": [[[float(lon), float(lat)] for lon, lat, *_ in ring] for ring in place["rings"]]}
        said = {key: place[key] for key in ("amount_mm", "onset", "end") if key in place}
        found.append({"name": str(place["name"]), "kind": str(place["kind"]), **where, **said})
    return found


def _beside(store: Store, path: Path, read: Callable[[Path], Any], what: str, notes: list[str]) -> Any:
    """What a file beside the product holds; a damaged one leaves the forecast itself to be shown, and says so."""
    try:
        return read(store.get(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        log.warning("%s is damaged: %s", path, err)
        notes.append(f"The file of the {what} is damaged ({path.name}); they are not shown.")
        return None


def _past(archive: Archive, domain: Domain, reference_time: datetime, image: MercatorImage) -> list[dict[str, Any]]:
    """Observed frames of the last hour, oldest first; a time without one has no image."""
    shown = []
    for time in times.slots(reference_time - PAST, reference_time, domain.cadence):
        frame = _observed(archive, time)
        shown.append({"time": times.iso(time), "frame": None if frame is None else png(image, _seen_frame(frame))})
    return shown


def _seen_frame(frame: Frame) -> Pixels:
    """A cell that was carried on from the frame before has a value too."""
    return seen(frame.rain, np.isin(frame.state, (ECHO, NO_ECHO, ADVECTED)))


def _observed(archive: Archive, time: datetime) -> Frame | None:
    """A frame that cannot be decoded is a gap, as it was for the forecast."""
    try:
        return archive.read(time)
    except DamagedFrame as err:
        log.warning("%s", err)
        return None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

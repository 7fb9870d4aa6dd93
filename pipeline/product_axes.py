"""Where and when the cells of a product lie, as CF coordinates and grid mapping."""

from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import times
from pipeline.frames.sequences import InputSequence
from pipeline.grids import Grid

EPOCH_UNITS = "seconds since 1970-01-01 00:00:00"


def coordinates(sequence: InputSequence, leads: list[timedelta]) -> dict[str, xr.Variable]:
    """Coordinate variables of a forecast: times with bounds if frames are means, axes, and longitude and latitude."""
    grid = sequence.source.grid

    def coordinate(dims: tuple[str, ...], values: Any, **attrs: Any) -> xr.Variable:
        return xr.Variable(dims, values, {**attrs, "coverage_content_type": "coordinate"})

    reference = times.seconds(sequence.reference_time)
    valid = np.array([reference + lead.total_seconds() for lead in leads], np.float64)
    epoch = {"units": EPOCH_UNITS, "calendar": "standard"}
    found = {
        "time": coordinate(("time",), valid, standard_name="time", long_name="valid time", axis="T", **epoch),
        "forecast_reference_time": coordinate(
            (), np.float64(reference), standard_name="forecast_reference_time", long_name="newest observation", **epoch
        ),
        "forecast_period": coordinate(
            ("time",),
            np.array([lead / timedelta(minutes=1) for lead in leads]),
            standard_name="forecast_period",
            long_name="lead time",
            units="minutes",
        ),
        "crs": xr.Variable((), np.int32(0), _grid_mapping(grid)),
    }
    if sequence.source.interval_s:
        found["time"].attrs["bounds"] = "time_bounds"
        spans = np.stack((valid - sequence.source.interval_s, valid), axis=1)
        found["time_bounds"] = xr.Variable(("time", "bounds"), spans)
    if grid.is_geographic:
        north = {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"}
        east = {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"}
        found["latitude"] = coordinate(("latitude",), grid.y, **north)
        found["longitude"] = coordinate(("longitude",), grid.x, **east)
        return found
    for name, values in (("y", grid.y), ("x", grid.x)):
        found[name] = coordinate(
            (name,),
            values,
            standard_name=f"projection_{name}_coordinate",
            long_name=f"{name} of the cell centre",
            units="m",
            axis=name.upper(),
        )
    lon, lat = _lon_lat(grid)
    found["lat"] = coordinate(("y", "x"), lat, standard_name="latitude", long_name="latitude", units="degrees_north")
    found["lon"] = coordinate(("y", "x"), lon, standard_name="longitude", long_name="longitude", units="degrees_east")
    return found


@lru_cache(maxsize=8)
def _lon_lat(grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    lon, lat = grid.lon_lat()
    return lon.astype(np.float32), lat.astype(np.float32)


@lru_cache(maxsize=8)
def extent(grid: Grid) -> tuple[float, float, float, float]:
    """West, east, south, north of the cell centres, degrees to 4 digits."""
    lon, lat = (grid.x, grid.y) if grid.is_geographic else grid.lon_lat()
    return tuple(round(float(v), 4) for v in (lon.min(), lon.max(), lat.min(), lat.max()))  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _grid_mapping(grid: Grid) -> dict[str, Any]:
    import warnings

    with warnings.catch_warnings():
        # the Swiss projection's grid angle has no CF name; crs_wkt carries it
        warnings.filterwarnings("ignore", message="angle from rectified to skew grid")
        mapping = grid.projection.to_cf()
    if mapping.get("grid_mapping_name") == "polar_stereographic":
        # CF wants the pole, which PROJ leaves out where it has the true latitude
        mapping.setdefault("latitude_of_projection_origin", float(np.copysign(90.0, mapping["standard_parallel"])))
    if mapping.get("grid_mapping_name") == "oblique_mercator":
        # CF's name is azimuth_of_central_line; compliance-checker 6.1 asks for the shorter one
        mapping.setdefault("azimuth", mapping["azimuth_of_central_line"])
    return {"long_name": "coordinate reference system", **mapping}

"""Where and when the cells of a product lie, as CF coordinates and grid mapping."""

import math
import warnings
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS

from pipeline import times
from pipeline.frames.sequences import InputSequence
from pipeline.grids import Grid

# metres of the units that maps are written in
METRES = {"m": 1.0, "km": 1000.0, "foot": 0.3048, "US_survey_foot": 1200 / 3937}

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
    rotated = grid.metres_per_unit is None
    for name, values, angle in (("y", grid.y, "grid_latitude"), ("x", grid.x, "grid_longitude")):
        found[name] = coordinate(
            (name,),
            values,
            standard_name=angle if rotated else f"projection_{name}_coordinate",
            long_name=f"{name} of the cell centre",
            units="degrees" if rotated else length_unit(grid),
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


def mapped(grid: Grid) -> dict[str, str]:
    """The attribute that ties a field to its grid mapping; none where CF has no name for the projection.

    Longitude and latitude of each cell then say where it is, and ``crs`` carries the projection as text.
    """
    return {"grid_mapping": "crs"} if "grid_mapping_name" in _grid_mapping(grid) else {}


def length_unit(grid: Grid) -> str:
    """Unit of x and y of a projected grid, as UDUNITS names it."""
    metres = grid.metres_per_unit or 1.0
    names = [name for name, length in METRES.items() if math.isclose(length, metres, rel_tol=1e-9)]
    return names[0] if names else f"{metres:.12g} m"


@lru_cache(maxsize=8)
def _grid_mapping(grid: Grid) -> dict[str, Any]:
    mapping = _cf_of(grid.projection)
    if "grid_mapping_name" not in mapping and grid.projection.is_bound and grid.projection.source_crs:
        # bound to WGS 84 by a grid of shifts, or by none
        mapping = _cf_of(grid.projection.source_crs)
    mapping["crs_wkt"] = grid.projection.to_wkt()
    if "grid_mapping_name" not in mapping:
        mapping = {**mapping, **_web_mercator(grid)}
    name = mapping.get("grid_mapping_name")
    if name == "polar_stereographic" and "standard_parallel" in mapping:
        # CF wants the pole, which PROJ leaves out where it has the true latitude
        mapping.setdefault("latitude_of_projection_origin", float(np.copysign(90.0, mapping["standard_parallel"])))
    if name == "lambert_conformal_conic" and "latitude_of_projection_origin" not in mapping:
        # with one standard parallel the origin lies on it, and PROJ leaves it out
        mapping["latitude_of_projection_origin"] = mapping["standard_parallel"]
    if name == "oblique_mercator":
        # CF's name is azimuth_of_central_line; compliance-checker 6.1 asks for the shorter one
        mapping.setdefault("azimuth", mapping["azimuth_of_central_line"])
    if name is None:
        mapping["comment"] = "CF has no grid mapping for this projection; lat and lon say where the cells are"
    return {"long_name": "coordinate reference system", **mapping}


def _cf_of(projection: CRS) -> dict[str, Any]:
    """What PROJ writes of a projection as CF; empty if it has no words for it."""
    with warnings.catch_warnings():
        # the Swiss projection's grid angle has no CF name; crs_wkt carries it
        warnings.filterwarnings("ignore", message="angle from rectified to skew grid")
        try:
            return dict(projection.to_cf())
        except KeyError:
            # PROJ knows a parameter by another name than its writer of CF
            return {}


def _web_mercator(grid: Grid) -> dict[str, Any]:
    """Web Mercator is a Mercator of the sphere with the equator of WGS 84; empty for other projections.

    Its latitudes and longitudes are those of WGS 84, as ``crs_wkt`` says.
    """
    flat = grid.projection.source_crs if grid.projection.is_bound else grid.projection
    operation = flat.coordinate_operation if flat is not None else None
    if operation is None or operation.method_name != "Popular Visualisation Pseudo Mercator":
        return {}
    values = {parameter.name: float(parameter.value) for parameter in operation.params}
    radius = 6378137.0
    return {
        "grid_mapping_name": "mercator",
        "semi_major_axis": radius,
        "semi_minor_axis": radius,
        "inverse_flattening": 0.0,
        "standard_parallel": 0.0,
        "longitude_of_projection_origin": values.get("Longitude of natural origin", 0.0),
        "false_easting": values.get("False easting", 0.0),
        "false_northing": values.get("False northing", 0.0),
    }

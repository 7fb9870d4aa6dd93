"""The grid of an ODIM_H5 composite, from ``where``: projection, corners and the scale that the header states."""

import re
from typing import Any

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.readers.contract import number, text

# the header's scale tells edges from centres if it is this near to one reading, of the distance between both
_CLEARLY = 0.1
# projections whose x grows with longitude alone, so that a grid may cross the meridian where the map is cut
_CYLINDRICAL = re.compile(r"\+proj=(merc|webmerc|eqc|cea|mill)\b")


def odim_grid(name: str, where: dict[str, Any], shape: tuple[int, int]) -> Grid:
    """Corners are outer edges of the image (ODIM_H5 2.2, table 3), or the centres of its outermost pixels.

    Centres are against the standard, yet written: they are taken if the header's scale fits them and not the edges.

    Raises:
        BadInput: the header lacks or garbles something, or gives no grid.
    """
    missing = [key for key in ("projdef", "LL_lon", "LL_lat", "UR_lon", "UR_lat") if key not in where]
    if missing:
        raise BadInput(f"{name}: where lacks {', '.join(missing)}; it has {', '.join(where) or 'nothing'}")
    crs = text(where["projdef"]).strip()
    lon, lat = ((number(where[f"LL_{axis}"]), number(where[f"UR_{axis}"])) for axis in ("lon", "lat"))
    try:
        projection = CRS.from_user_input(crs)
        west, south, east, north = _corners(projection, lon, lat)
        if east <= west and projection.is_geographic:
            east += 360.0
        elif east <= west and lon[1] < lon[0] and _CYLINDRICAL.search(crs):
            # the map is cut inside of the grid: the same map is cut elsewhere
            crs = _centred_on(crs, (lon[0] + lon[1] + 360) / 2)
            west, south, east, north = _corners(CRS.from_user_input(crs), lon, lat)
    except (CRSError, ProjError) as err:
        raise BadInput(f"{name}: PROJ makes nothing of where/projdef {crs!r}") from err
    rows, columns = shape
    inside = _of_centres(where, east - west, north - south, shape)
    dx, dy = (east - west) / (columns - inside), (north - south) / (rows - inside)
    if not (dx > 0 and dy > 0 and np.isfinite([west, north, dx, dy]).all()):
        raise BadInput(
            f"{name}: corners {lon[0]:g} E {lat[0]:g} N and {lon[1]:g} E {lat[1]:g} N give cells of {dx:g} x {dy:g} "
            f"on {crs}"
        )
    edge = 0.0 if inside else 0.5
    return Grid(crs, shape, float(west + edge * dx), float(north - edge * dy), float(dx), float(dy))


def _corners(projection: CRS, lon: tuple[float, float], lat: tuple[float, float]) -> tuple[float, float, float, float]:
    """West, south, east and north, in units of the projection."""
    x, y = Transformer.from_crs("EPSG:4326", projection, always_xy=True).transform(lon, lat)
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


def _of_centres(where: dict[str, Any], wide: float, high: float, shape: tuple[int, int]) -> int:
    """1 if the corners are those of pixel centres, 0 if they are outer edges."""
    rows, columns = shape
    if min(shape) < 2 or not {"xscale", "yscale"} <= set(where):
        return 0
    fits = []
    for extent, size, key in ((wide, columns, "xscale"), (high, rows, "yscale")):
        edges, centres, stated = extent / size, extent / (size - 1), number(where[key])
        fits.append(abs(centres - stated) <= _CLEARLY * abs(centres - edges))
    return int(all(fits))


def _centred_on(crs: str, longitude: float) -> str:
    middle = (longitude + 180) % 360 - 180
    return f"{re.sub(r'[+]lon_0=[-+.0-9eE]+', '', crs)} +lon_0={middle:.10g}"

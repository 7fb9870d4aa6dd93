"""Whether a grid lies on the earth, and whether two grids are the same, however they are written."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from pipeline.grids import Grid

# of a cell; corners in degrees are rounded at the sixth decimal, which is 0.1 m
SAME_PLACE = 0.01
# no figure of the earth has an axis outside of this; a wrong unit is off by a thousand
_EARTH_AXIS_M = (6.3e6, 6.45e6)
_SPACING_KM = (0.001, 1000.0)


@lru_cache(maxsize=64)
def grid_fault(grid: Grid) -> str:
    """Why the cells of a grid have no place on the earth; empty if they have.

    Corners and centre are transformed to longitude and latitude and back.
    """
    if not (np.isfinite([grid.west, grid.north, grid.dx, grid.dy]).all() and grid.dx > 0 and grid.dy > 0):
        return f"its cells are {grid.dx:g} x {grid.dy:g} from ({grid.west:g}, {grid.north:g})"
    try:
        figure = grid.projection.ellipsoid
        if figure is not None and not _EARTH_AXIS_M[0] < figure.semi_major_metre < _EARTH_AXIS_M[1]:
            return f"its projection {_short(grid.crs)} has an earth with an axis of {figure.semi_major_metre:g} m"
        x, y = _points(grid)
        lon, lat = grid.degrees(x, y)
        back = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True)
        again = np.stack(back.transform(lon, lat))
        spacing = grid.ground_spacing_km
    except (CRSError, ProjError) as err:
        return f"PROJ makes nothing of its projection {_short(grid.crs)}: {err}"
    if grid.projection.is_geographic:  # the same longitude may be written in another turn
        again[0] += 360 * np.round((x - again[0]) / 360)
    moved = np.abs(again - np.stack((x, y))) / np.array([[grid.dx], [grid.dy]])
    if not (moved <= SAME_PLACE).all():
        return f"its corners are not where the projection {_short(grid.crs)} has a map: they do not come back from it"
    if not all(_SPACING_KM[0] <= distance <= _SPACING_KM[1] for distance in spacing):
        return f"its cells measure {spacing[1]:g} x {spacing[0]:g} km on the ground"
    return ""


@lru_cache(maxsize=64)
def grid_difference(grid: Grid, other: Grid) -> str:
    """In what ``other`` is not the same grid; empty if its cells lie where those of ``grid`` do, to a hundredth.

    The places are compared, not the words: the order of parameters, ``+no_defs``, a rounded corner or another unit of
    the same map make no other grid.
    """
    if grid == other:
        return ""
    if grid.shape != other.shape:
        return f"{other.shape[0]} x {other.shape[1]} cells, not {grid.shape[0]} x {grid.shape[1]}"
    try:
        moved = _moved(grid, other)
        same_map = grid.projection.equals(other.projection, ignore_axis_order=True)
    except (CRSError, ProjError) as err:
        return f"projection {_short(other.crs)}, of which PROJ makes nothing: {err}"
    if moved <= SAME_PLACE:
        return ""
    parts = [] if same_map else [f"projection {_short(other.crs)}, not {_short(grid.crs)}"]
    if same_map and max(abs(other.dx / grid.dx - 1), abs(other.dy / grid.dy - 1)) * max(grid.shape) > SAME_PLACE:
        parts.append(f"cells of {other.dx:.9g} x {other.dy:.9g}, not {grid.dx:.9g} x {grid.dy:.9g}")
    shift = f"up to {moved:.3g} cells away" if np.isfinite(moved) else "at places that the other map does not have"
    return "; ".join([*parts, f"cells {shift}"])


def same_projection(crs: str, other: str) -> bool:
    """Whether two texts stand for one projection."""
    try:
        return bool(CRS.from_user_input(crs).equals(CRS.from_user_input(other), ignore_axis_order=True))
    except CRSError:
        return False


def _moved(grid: Grid, other: Grid) -> float:
    """The farthest that a corner or the centre of ``other`` lies from that of ``grid``, cells of ``grid``."""
    x, y = Transformer.from_crs(other.projection, grid.projection, always_xy=True).transform(*_points(other))
    ours = _points(grid)
    x, y = np.asarray(x), np.asarray(y)
    if grid.projection.is_geographic:
        x = x + 360 * np.round((ours[0] - x) / 360)
    away = np.hypot((x - ours[0]) / grid.dx, (y - ours[1]) / grid.dy)
    return float(np.max(away)) if np.isfinite(away).all() else float("inf")


def _points(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners and centre on the map."""
    columns, rows = grid.x[[0, -1]], grid.y[[0, -1]]
    x, y = np.meshgrid(columns, rows)
    return np.append(x.ravel(), columns.mean()), np.append(y.ravel(), rows.mean())


def _short(crs: str) -> str:
    return crs if len(crs) <= 200 else f"{crs[:200]}..."

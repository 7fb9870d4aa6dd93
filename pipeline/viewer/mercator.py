"""A domain's fields on a Web Mercator image, the projection of the page's map: north up, nearest cell."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.errors import NotForecast
from pipeline.frames.grayscale import Pixels
from pipeline.grids import Grid

LONGEST_SIDE = 640  # cells; what a phone shows, and 40 to 80 such images make a page of a few MB
LATITUDE_LIMIT = 85.0  # a square Web Mercator world ends at 85.05 degrees
DEGREE_M = 111_195.0  # of a meridian


@dataclass(frozen=True)
class MercatorImage:
    """Where each cell of the image comes from.

    Attributes:
        source: (rows, columns) int64, flat index of the nearest cell of the domain's grid; -1 outside of it.
        west, east, south, north: outer edges, degrees; across the date line east is more than 180.
    """

    source: NDArray[np.int64]
    west: float
    east: float
    south: float
    north: float

    def of(self, field: Pixels, outside: int) -> Pixels:
        """The image of a field (rows, columns) of the domain; ``outside`` where the domain has no cell."""
        shown = np.take(field.ravel(), np.maximum(self.source, 0))
        return np.where(self.source < 0, np.uint8(outside), shown)


def mercator_image(grid: Grid, longest: int = LONGEST_SIDE) -> MercatorImage:
    """The image of a grid's extent: cells as wide as the grid's, or wider where that makes more than ``longest``.

    Raises:
        NotForecast: the grid reaches beyond 85 degrees of latitude, where Web Mercator has no place.
    """
    west, east, south, north = extent(grid)
    if south < -LATITUDE_LIMIT or north > LATITUDE_LIMIT:
        raise NotForecast(
            f"the map ends at {LATITUDE_LIMIT:g} degrees latitude, the domain reaches from {south:.1f} to {north:.1f}"
        )
    bottom, top = (_stretched(np.array(latitude)) for latitude in (south, north))
    wide, high = east - west, float(top - bottom)
    spacing = grid.spacing_m / (DEGREE_M * math.cos(math.radians((south + north) / 2)))
    step = max(spacing, wide / longest, high / longest)
    columns, rows = math.ceil(wide / step), math.ceil(high / step)
    longitudes = west + wide * (np.arange(columns) + 0.5) / columns
    latitudes = _latitude(top - high * (np.arange(rows) + 0.5) / rows)
    return MercatorImage(_nearest(grid, longitudes, latitudes), west, east, south, north)


def extent(grid: Grid) -> tuple[float, float, float, float]:
    """West, east, south and north of the outer edges of the cells, degrees; east is more than west everywhere."""
    rows, columns = grid.shape
    x = grid.west + grid.dx * (np.arange(columns + 1) - 0.5)
    y = grid.north - grid.dy * (np.arange(rows + 1) - 0.5)
    edge_x = np.concatenate((x, x, np.full_like(y, x[0]), np.full_like(y, x[-1])))
    edge_y = np.concatenate((np.full_like(x, y[0]), np.full_like(x, y[-1]), y, y))
    to_degrees = Transformer.from_crs(grid.projection, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(edge_x, edge_y)
    middle, _ = to_degrees.transform(x[len(x) // 2], y[len(y) // 2])
    longitude = _near(np.asarray(longitude), float(middle))
    south, north = float(np.min(latitude)), float(np.max(latitude))
    # a pole inside the grid is in none of its edges
    for pole in (-90.0, 90.0):
        inside = _rows_columns(grid, *_from_degrees(grid, np.zeros(1), np.full(1, pole)))[2][0]
        south, north = (min(south, pole), max(north, pole)) if inside else (south, north)
    return float(longitude.min()), float(longitude.max()), south, north


def _nearest(grid: Grid, longitudes: NDArray[np.float64], latitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    longitude, latitude = np.meshgrid(longitudes, latitudes)
    row, column, inside = _rows_columns(grid, *_from_degrees(grid, longitude, latitude))
    return np.where(inside, row * grid.shape[1] + column, -1)


def _from_degrees(
    grid: Grid, longitude: NDArray[np.float64], latitude: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the grid; what has none is infinite."""
    x, y = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True).transform(longitude, latitude)
    middle = grid.west + grid.dx * (grid.shape[1] - 1) / 2
    return (_near(np.asarray(x), middle) if grid.is_geographic else np.asarray(x)), np.asarray(y)


def _rows_columns(
    grid: Grid, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column of the nearest cell, 0 outside; and whether the place lies in the grid."""
    row, column = np.floor((grid.north - y) / grid.dy + 0.5), np.floor((x - grid.west) / grid.dx + 0.5)
    inside = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
    return np.where(inside, row, 0).astype(np.int64), np.where(inside, column, 0).astype(np.int64), inside


def _near(longitude: NDArray[np.float64], middle: float) -> NDArray[np.float64]:
    """Longitudes within 180 degrees of ``middle``, so that the date line is no edge."""
    return middle + (longitude - middle + 180) % 360 - 180


def _stretched(latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Web Mercator ordinate in degrees of longitude at the equator."""
    return np.degrees(np.arcsinh(np.tan(np.radians(latitude))))


def _latitude(stretched: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of ``_stretched``."""
    return np.degrees(np.arctan(np.sinh(np.radians(stretched))))

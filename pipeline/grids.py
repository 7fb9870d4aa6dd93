"""The map grid of a domain: projected (or lat-lon) cell centres, row 0 in the north, column 0 in the west."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Geod, Transformer

# maps of weather services are true to scale within this much where they are used
_NEARLY_TRUE = 0.1


@dataclass(frozen=True)
class Grid:
    """A regular grid.

    Attributes:
        crs: anything pyproj understands (WKT, PROJ string, EPSG code); it says in which unit x and y count.
        shape: (rows, columns).
        west, north: coordinates of the centre of the north-west cell, in units of the CRS (m, km, degrees).
        dx, dy: spacing, both positive, in units of the CRS.
    """

    crs: str
    shape: tuple[int, int]
    west: float
    north: float
    dx: float
    dy: float

    @cached_property
    def projection(self) -> CRS:
        """The parsed CRS."""
        return CRS.from_user_input(self.crs)

    @property
    def is_geographic(self) -> bool:
        """True on a latitude-longitude grid; a rotated one is none."""
        return bool(self.projection.is_geographic and not self.projection.is_derived)

    @property
    def metres_per_unit(self) -> float | None:
        """Length of a unit of x and y; None if they are angles."""
        unit = self.projection.axis_info[0] if self.projection.axis_info else None
        if self.projection.is_geographic or (unit is not None and "degree" in unit.unit_name):
            return None
        return float(unit.unit_conversion_factor) if unit is not None else 1.0

    @property
    def x(self) -> NDArray[np.float64]:
        """Column centres, west to east."""
        return self.west + self.dx * np.arange(self.shape[1], dtype=np.float64)

    @property
    def y(self) -> NDArray[np.float64]:
        """Row centres, north to south."""
        return self.north - self.dy * np.arange(self.shape[0], dtype=np.float64)

    @cached_property
    def spacing_m(self) -> float:
        """Mean distance in metres between neighbouring centres at the middle of the grid.

        Of a map that is nearly true to scale there, its own metres; of another (Web Mercator) those on the ground.
        """
        if not self.is_geographic:
            on_map = (self.dx + self.dy) / 2 * (self.metres_per_unit or 0.0)
            on_ground = sum(self.ground_spacing_km) / 2 * 1000
            return on_ground if abs(on_map - on_ground) > _NEARLY_TRUE * on_ground else on_map
        lon, lat = float(np.median(self.x)), float(np.median(self.y))
        geod = Geod(ellps="WGS84")
        _, _, east = geod.inv(lon, lat, lon + self.dx, lat)
        _, _, north = geod.inv(lon, lat, lon, lat + self.dy)
        return float((east + north) / 2)

    @cached_property
    def ground_spacing_km(self) -> tuple[float, float]:
        """Distance on the ground between neighbouring rows and between neighbouring columns, at the middle of the grid.

        A projection's metres are true along some lines only: Dutch kilometres of a map that is true at 60 N are 4 %
        short.
        """
        x, y = float(self.x[self.shape[1] // 2]), float(self.y[self.shape[0] // 2])
        lon, lat = self.degrees([x, x, x - self.dx / 2, x + self.dx / 2], [y - self.dy / 2, y + self.dy / 2, y, y])
        _, _, distance = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
        return float(distance[0]) / 1000, float(distance[1]) / 1000

    def degrees(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude of places on the map, which may lie outside of the grid."""
        to_degrees = Transformer.from_crs(self.projection, "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(x, y)
        return np.asarray(lon), np.asarray(lat)

    def lon_lat(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude of every centre, degrees, shape (rows, columns)."""
        x, y = np.meshgrid(self.x, self.y)
        return self.degrees(x, y)

    def coarsened(self, n: int) -> "Grid":
        """The grid of n x n blocks; rows and columns that do not fill a block (south, east) are dropped."""
        rows, columns = self.shape
        if min(rows, columns) < n:
            raise ValueError(f"cannot coarsen a grid of {rows} x {columns} cells by {n}")
        shift = (n - 1) / 2
        return Grid(
            self.crs,
            (rows // n, columns // n),
            self.west + shift * self.dx,
            self.north - shift * self.dy,
            n * self.dx,
            n * self.dy,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for attributes and cards."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Grid":
        """Inverse of ``to_json``."""
        return cls(**{**data, "shape": tuple(data["shape"])})

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def centred_grid(crs: str, shape: tuple[int, int], spacing_m: float, centre: tuple[float, float]) -> Grid:
    """A projected grid around ``centre`` (longitude, latitude in degrees)."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*centre)
    rows, columns = shape
    west = x - spacing_m * (columns - 1) / 2
    north = y + spacing_m * (rows - 1) / 2
    return Grid(crs, shape, float(west), float(north), spacing_m, spacing_m)

"""Places on the grid: the cell of a point, the cells of an area, and the values of fields there."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.domain import Domain
from pipeline.errors import SettingsError
from pipeline.grids import Grid
from pipeline.place_settings import Rings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """A point or an area on a grid.

    Attributes:
        rows, columns: of its cells on the grid.
        size: number of its cells, with those beyond the edge of the grid.
        position: longitude and latitude of a point.
        rings: of an area, longitude and latitude, without vertices closer than half a cell; even-odd.
    """

    name: str
    kind: Literal["point", "area"]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    size: int
    position: tuple[float, float] | None = None
    rings: Rings = ()


def places_of(domain: Domain, grid: Grid) -> list[Place]:
    """The points and areas of a domain: the cell that contains a point, the cells whose centres lie inside an area.

    An area in which no centre lies is the cell of its centroid. Edges of areas are straight on the grid.

    Raises:
        SettingsError: a point, or more than half of an area, lies outside the grid.
    """
    places = [_point(domain, grid, name, position) for name, position in domain.points.items()]
    return places + [_area(domain, grid, name, rings) for name, rings in domain.rings_of_areas.items()]


def values(place: Place, field: NDArray[np.floating[Any]]) -> Floats:
    """Mean over the observed cells of a place.

    Args:
        field: (..., rows, columns); NaN is not observed.

    Returns:
        (...); NaN where fewer than half of the cells are observed.
    """
    cells, seen, enough = _cells(place, field)
    mean = np.where(seen, cells, 0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return np.where(enough, mean, np.nan)


def maxima(place: Place, field: NDArray[np.floating[Any]]) -> Floats:
    """Largest value of the observed cells of a place; see ``values``."""
    cells, seen, enough = _cells(place, field)
    return np.where(enough, np.where(seen, cells, -np.inf).max(axis=-1), np.nan)


def _cells(place: Place, field: NDArray[np.floating[Any]]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    cells = field[..., place.rows, place.columns].astype(np.float64)
    seen = ~np.isnan(cells)
    return cells, seen, 2 * seen.sum(axis=-1) >= place.size


def _point(domain: Domain, grid: Grid, name: str, position: tuple[float, float]) -> Place:
    ((column, row),) = np.floor(_on_grid(grid, (position,)) + 0.5)
    if not (0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]):
        raise SettingsError(f"domains.{domain.name}.points.{name}: {list(position)} lies outside the grid")
    return Place(name, "point", np.array([int(row)]), np.array([int(column)]), 1, position=position)


def _area(domain: Domain, grid: Grid, name: str, rings: Rings) -> Place:
    on_grid = [_on_grid(grid, ring) for ring in rings]
    where = f"domains.{domain.name}.areas: {name}"
    if not all(np.isfinite(ring).all() for ring in on_grid):
        raise SettingsError(f"{where} lies outside what the grid's projection can show")
    rows, columns, size = cells_inside(on_grid, grid.shape)
    if size == 0:
        column, row = np.floor(_centroid(on_grid) + 0.5)
        inside = 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]
        rows, columns = (np.array([at] if inside else [], np.intp) for at in (row, column))
        size = 1
    if 2 * len(rows) < size or not len(rows):
        raise SettingsError(f"{where} has {len(rows)} of its {size} cells on the grid; at least half must be")
    thinned = tuple(_thinned(ring, at) for ring, at in zip(rings, on_grid, strict=True))
    return Place(name, "area", rows, columns, size, rings=thinned)


def _on_grid(grid: Grid, positions: tuple[tuple[float, float], ...]) -> Floats:
    """Longitude and latitude as (position, 2) columns and rows, whole numbers at the centres of cells."""
    lon, lat = np.array(positions, np.float64).T
    x, y = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True).transform(lon, lat)
    if grid.is_geographic:  # the same longitude may be written in another turn
        middle = grid.west + grid.dx * (grid.shape[1] - 1) / 2
        x = lon + 360 * np.round((middle - lon.mean()) / 360)
    return np.stack(((x - grid.west) / grid.dx, (grid.north - y) / grid.dy), axis=-1)


def cells_inside(rings: list[Floats], shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Cells whose centres lie inside rings by the even-odd rule, so that a ring inside another is a hole.

    Args:
        rings: each (vertices, 2) columns and rows, closed.

    Returns:
        Rows and columns of the cells on the grid, and the number of cells on one of three times the height and width
        around it.
    """
    height, width = shape
    start, end = (np.concatenate([ring[part] for ring in rings]) for part in (slice(-1), slice(1, None)))
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    rows, columns, size = [np.empty(0, np.intp)], [np.empty(0, np.intp)], 0
    ends = np.ceil(np.clip((low.min(), high.max()), -height, 2 * height)).astype(int)
    for row in range(*ends):
        crossed = (low <= row) & (row < high)
        a, b = start[crossed], end[crossed]
        crossings = np.sort(a[:, 0] + (row - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1]))
        # inside from each odd crossing to the next
        spans = np.ceil(np.clip(crossings, -width, 2 * width)).astype(np.intp).reshape(-1, 2)
        size += int((spans[:, 1] - spans[:, 0]).sum())
        if 0 <= row < height:
            inside = [np.arange(first, last) for first, last in np.clip(spans, 0, width)]
            columns += inside
            rows += [np.full(len(span), row) for span in inside]
    return np.concatenate(rows), np.concatenate(columns), size


def _centroid(rings: list[Floats]) -> Floats:
    """Column and row of the centre of area of the largest ring; of one without an area, the mean of its vertices."""

    def doubled(ring: Floats) -> Floats:
        return np.asarray(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1])

    centred = [ring - ring[0] for ring in rings]
    largest = int(np.argmax([abs(doubled(ring).sum()) for ring in centred]))
    ring, twice = centred[largest], doubled(centred[largest])
    if abs(twice.sum()) < 1e-9:
        return np.asarray(rings[largest][:-1].mean(axis=0))
    middle = ((ring[:-1] + ring[1:]) * twice[:, None]).sum(axis=0) / (3 * twice.sum())
    return np.asarray(rings[largest][0] + middle)


def _thinned(ring: tuple[tuple[float, float], ...], on_grid: Floats) -> tuple[tuple[float, float], ...]:
    """A ring without the vertices that no picture on the grid could show, for files that are written every cycle."""
    kept = [0]
    for n in range(1, len(ring) - 1):
        if np.abs(on_grid[n] - on_grid[kept[-1]]).max() >= 0.5:
            kept.append(n)
    return tuple(ring[n] for n in (*kept, 0)) if len(kept) >= 3 else ring

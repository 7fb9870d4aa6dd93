"""Coasts and borders of the page's map, cut out of a TopoJSON file of the world's countries (Natural Earth)."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.grids import Grid

# the build puts it there, see the Makefile
WORLD = Path(__file__).parent / "vendor" / "countries-10m.json"

Line = NDArray[np.float64]  # (points, 2): longitude, latitude in degrees
Window = tuple[float, float, float, float]  # west, east, south, north

DIGITS = 4  # of a degree: 11 m, finer than the file


def lines_within(topology: dict[str, Any], window: Window) -> dict[str, list[Line]]:
    """Coasts (of one country's shape) and borders (shared by two) inside a window that may cross the date line."""
    arcs = decode_arcs(topology)
    shared = _uses(topology["objects"]["countries"])
    found: dict[str, list[Line]] = {"coast": [], "border": []}
    for number, arc in enumerate(arcs):
        kind = "coast" if shared[number] == 1 else "border"
        for part in _without_seam(arc):
            for turn in (-360.0, 0.0, 360.0):
                found[kind] += clip(part + np.array([turn, 0.0]), window)
    return found


def lines_on_grid(grid: Grid) -> dict[str, list[Line]]:
    """Coasts and borders as columns and rows of a grid, 0 at the first cell's centre; none if the file is absent."""
    if not WORLD.is_file():
        return {"coast": [], "border": []}
    lon, lat = grid.lon_lat()
    window = (float(lon.min()) - 1, float(lon.max()) + 1, float(lat.min()) - 1, float(lat.max()) + 1)
    found = lines_within(json.loads(WORLD.read_bytes()), window)
    to_grid = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True)

    def placed(line: Line) -> Line:
        x, y = to_grid.transform(line[:, 0], line[:, 1])
        return np.column_stack(((np.asarray(x) - grid.west) / grid.dx, (grid.north - np.asarray(y)) / grid.dy))

    return {kind: [placed(line) for line in lines] for kind, lines in found.items()}


def decode_arcs(topology: dict[str, Any]) -> list[Line]:
    """The arcs of a quantised topology: each starts at an absolute grid position, then come differences."""
    scale, translate = (np.array(topology["transform"][key], np.float64) for key in ("scale", "translate"))
    return [np.cumsum(np.array(arc, np.int64), axis=0) * scale + translate for arc in topology["arcs"]]


def clip(line: Line, window: Window) -> list[Line]:
    """The parts of a line inside a window, cut at its edges (Liang and Barsky 1984)."""
    west, east, south, north = window
    low, high = np.array([west, south]), np.array([east, north])
    if (line.max(axis=0) < low).any() or (line.min(axis=0) > high).any():
        return []
    start, step = line[:-1], np.diff(line, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (low - start) / step, (high - start) / step
    # 0 / 0: the segment runs along an edge, which is inside
    to_low[np.isnan(to_low)], to_high[np.isnan(to_high)] = -np.inf, np.inf
    enter = np.maximum(np.minimum(to_low, to_high).max(axis=1), 0)
    leave = np.minimum(np.maximum(to_low, to_high).min(axis=1), 1)
    parts: list[list[Line]] = []
    previous = -2
    for n in np.flatnonzero(enter < leave):
        if n != previous + 1 or enter[n] > 0:
            parts.append([start[n] + enter[n] * step[n]])
        parts[-1].append(start[n] + leave[n] * step[n])
        previous = int(n) if leave[n] == 1 else -2
    return [np.array(part) for part in parts]


def _uses(geometries: dict[str, Any]) -> Counter[int]:
    """How many rings run along each arc; an arc that is run backwards is written as its complement."""
    return Counter(
        n if n >= 0 else ~n for geometry in geometries["geometries"] for n in _numbers(geometry.get("arcs", []))
    )


def _numbers(nested: Any) -> Iterator[int]:
    if isinstance(nested, int):
        yield nested
        return
    for part in nested:
        yield from _numbers(part)


def _without_seam(arc: Line) -> list[Line]:
    """An arc in one piece across the 180th meridian, without the cuts along it, where the file's world ends."""
    longitude = np.unwrap(arc[:, 0], period=360)
    at_seam = np.abs(longitude % 360 - 180) < 10**-DIGITS
    cut = np.flatnonzero(at_seam[:-1] & at_seam[1:]) + 1
    pieces = np.split(np.column_stack((longitude, arc[:, 1])), cut)
    return [piece for piece in pieces if len(piece) > 1]

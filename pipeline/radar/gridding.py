"""Sweeps onto the domain's grid by cached look-ups: pseudo-CAPPI, lowest valid beam or column maximum.

Geometry: 4/3 earth. Seen from a radar, a cell has an azimuth and a ground distance, whatever the sweep; these are kept.
What depends on the sweep, ray by azimuth and gate and height by distance, are short tables made anew each time. So
changing lists of elevations, drifting azimuths, missing rays and 359 or 361 of them cost nothing, and a radar costs
four bytes a cell.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pyproj import Geod, Transformer

from pipeline.grids import Grid
from pipeline.radar.volume import Floats, Site, Sweep, Volume

EFFECTIVE_EARTH_M = 4 / 3 * 6371000.0
# a beam higher than this above sea level tells nothing of rain below
HIGHEST_BEAM_M = 10_000.0
# sweeps this close in elevation look at the same rain
SAME_ELEVATION = 0.15
# steps of the tables: a hundredth of a degree, and a tenth of the shortest gates in use
AZIMUTH_STEPS, DISTANCE_STEP_M = 36000, 20.0


@dataclass(frozen=True)
class Level:
    """What of a volume is shown.

    Attributes:
        kind: ``cappi`` interpolates (in dBZ) between the beams around ``altitude_m`` above sea level, and takes the
            nearest beam where only one side has one (pseudo-CAPPI); ``lowest`` takes the lowest valid beam;
            ``column_max`` the highest value of all.
    """

    kind: Literal["cappi", "lowest", "column_max"] = "cappi"
    altitude_m: float = 2000.0


def level_of(product: str) -> Level:
    """The level that a product of ``pipeline.domain.Domain`` names; rain at the surface is the 2 km pseudo-CAPPI."""
    if product.startswith("cappi_"):
        return Level("cappi", float(product.removeprefix("cappi_")))
    return {"surface_rain": Level(), "lowest": Level("lowest"), "column_max": Level("column_max")}[product]


@dataclass(frozen=True)
class Window:
    """The part of a grid that a radar can see: rows and columns, half open."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing an array of the whole grid."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class GriddedVolume:
    """One radar on its window of the grid.

    Attributes:
        dbz: (levels, rows, columns); NaN where not measured, NO_ECHO_DBZ where no echo.
        height: (levels, rows, columns) metres above sea level of what gave the value; NaN where dbz is.
        removed: (rows, columns); no beam gave a value and quality control took one out.
        time: mean time of the sweeps, by the number of cells that each has in the first level.
    """

    radar: str
    window: Window
    dbz: Floats
    height: Floats
    removed: NDArray[np.bool_]
    time: datetime
    defects: tuple[str, ...]


@dataclass(frozen=True)
class _Cells:
    """Where the cells of a window lie as seen from a site: azimuth and ground distance, in steps of the tables.

    Attributes:
        distance: ground distance in units of DISTANCE_STEP_M; the last entry of the tables stands for "too far".
    """

    window: Window
    azimuth: NDArray[np.uint16]
    distance: NDArray[np.uint16]


def grid_volume(
    volume: Volume, grid: Grid, levels: tuple[Level, ...] = (Level(),), max_range_m: float = 240e3
) -> GriddedVolume | None:
    """One field a level from the sweeps of a volume; None if the radar does not see the grid.

    A gate that was not measured never takes part: the next valid sweep does. So all levels have values in the same
    cells.
    """
    cells = _cells(volume.site, grid, max_range_m)
    if cells is None:
        return None
    sweeps = _chosen(volume.sweeps)
    stacks = [_Stack(cells.distance.shape, level) for level in levels]
    removed = np.zeros(cells.distance.shape, bool)
    heights = np.full((len(sweeps) + 1, _steps(max_range_m) + 1), np.nan, np.float32)
    for n, sweep in enumerate(sweeps):
        gate, heights[n] = _gates_and_heights(volume.site, sweep, max_range_m)
        values, taken = _sample(sweep, cells, gate)
        if taken is not None:
            removed |= taken
        for stack in stacks:
            stack.add(n, values, heights[n], cells)
    made = [stack.result(heights, cells) for stack in stacks]
    dbz, height = np.stack([one for one, _ in made]), np.stack([one for _, one in made])
    return GriddedVolume(
        volume.radar, cells.window, dbz, height, removed & np.isnan(dbz[0]), stacks[0].time(sweeps), volume.defects
    )


class _Stack:
    """One level while sweeps come in, from low to high: values and numbers of the sweeps that gave them.

    For a CAPPI the nearest valid beams below and above the altitude, else only ``low`` counts.
    """

    def __init__(self, shape: tuple[int, ...], level: Level) -> None:
        self.level = level
        self.low, self.low_sweep = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int16)
        self.high, self.high_sweep = self.low.copy(), self.low_sweep.copy()

    def add(self, n: int, values: Floats, height: Floats, cells: _Cells) -> None:
        """Take what the sweep ``n``, higher than those before, has to give."""
        valid = ~np.isnan(values)
        if self.level.kind != "column_max" and np.nanmax(height) > HIGHEST_BEAM_M:
            valid &= (height <= HIGHEST_BEAM_M).take(cells.distance)
        if self.level.kind == "lowest":
            self._keep_low(n, values, valid & np.isnan(self.low))
        elif self.level.kind == "column_max":
            self._keep_low(n, values, valid & ~(self.low >= values))
        else:
            above = (height > self.level.altitude_m).take(cells.distance)
            self._keep_low(n, values, valid & ~above)  # the last one below stays
            first = valid & above & np.isnan(self.high)
            np.copyto(self.high, values, where=first)
            np.copyto(self.high_sweep, np.int16(n), where=first)

    def _keep_low(self, n: int, values: Floats, where: NDArray[np.bool_]) -> None:
        np.copyto(self.low, values, where=where)
        np.copyto(self.low_sweep, np.int16(n), where=where)

    def result(self, heights: Floats, cells: _Cells) -> tuple[Floats, Floats]:
        """Values and their heights; between both beams, or of the one there is.

        Args:
            heights: (sweeps + 1, steps of distance); the last row, number -1, is of no sweep.
        """
        low_height = heights[self.low_sweep, cells.distance]
        if self.level.kind != "cappi":
            return self.low, low_height
        high_height = heights[self.high_sweep, cells.distance]
        share = (self.level.altitude_m - low_height) / np.maximum(high_height - low_height, 1.0)
        no_low, no_high = np.isnan(self.low), np.isnan(self.high)
        dbz = self.low + share * (self.high - self.low)
        height = np.full(dbz.shape, self.level.altitude_m, np.float32)
        for missing, value, its_height in ((no_high, self.low, low_height), (no_low, self.high, high_height)):
            np.copyto(dbz, value, where=missing)
            np.copyto(height, its_height, where=missing)
        return dbz, height

    def time(self, sweeps: list[Sweep]) -> datetime:
        """Mean time of the sweeps by their number of cells."""
        numbers = np.stack((self.low_sweep, self.high_sweep)).ravel()
        weights = np.bincount(numbers + 1, minlength=len(sweeps) + 1)[1:]
        seconds = [sweep.time.timestamp() for sweep in sweeps]
        mean = np.average(seconds, weights=weights if weights.any() else None)
        return datetime.fromtimestamp(float(mean), UTC)


def _chosen(sweeps: tuple[Sweep, ...]) -> list[Sweep]:
    """One sweep per elevation, from low to high: of repeats the one made for reflectivity, then the latest."""

    def quality(sweep: Sweep) -> tuple[bool, bool, bool, bool, float, datetime]:
        # a repeat that was cut off, as at the end of a volume that is still scanned, must not win by being the latest
        turn = len(sweep.azimuth) * float(np.median(np.diff(sweep.azimuth))) > 330
        known = sweep.rhohv is not None
        return turn, sweep.filtered, sweep.surveillance, known, round(sweep.reach_m, -4), sweep.time

    groups: list[list[Sweep]] = []
    for sweep in sorted(sweeps, key=lambda s: s.elevation):
        if groups and sweep.elevation - groups[-1][0].elevation <= SAME_ELEVATION:
            groups[-1].append(sweep)
        else:
            groups.append([sweep])
    return [max(group, key=quality) for group in groups]


def _sample(sweep: Sweep, cells: _Cells, gate: NDArray[np.int32]) -> tuple[Floats, NDArray[np.bool_] | None]:
    """Value of the gate that covers each cell (NaN: no gate, no ray or not measured), and where it was removed."""
    rays, gates = sweep.dbz.shape
    # one gate and one ray more, of NaN, for cells that have none
    first = (_rays(sweep.azimuth) % (rays + 1)) * np.int32(gates + 1)
    index = first.take(cells.azimuth)
    index += (gate % (gates + 1)).take(cells.distance)
    values = np.pad(sweep.dbz, ((0, 1), (0, 1)), constant_values=np.nan).take(index)
    if sweep.removed is None:
        return values, None
    return values, np.pad(sweep.removed, ((0, 1), (0, 1))).take(index)


def _rays(azimuth: Floats) -> NDArray[np.int32]:
    """For each step of azimuth the nearest ray; -1 where none lies within the spacing of the rays: a hole stays one."""
    steps = np.diff(azimuth)
    spacing = float(np.median(steps[steps > 0.01])) if (steps > 0.01).any() else 0.0
    centres = np.arange(AZIMUTH_STEPS) * (360 / AZIMUTH_STEPS)
    around = np.concatenate((azimuth[-1:] - 360, azimuth, azimuth[:1] + 360)).astype(np.float64)
    right = np.clip(np.searchsorted(around, centres), 1, len(around) - 1)
    nearest = np.where(centres - around[right - 1] <= around[right] - centres, right - 1, right)
    distance = np.abs(around[nearest] - centres)
    return np.where(distance <= max(spacing, 0.1), (nearest - 1) % len(azimuth), -1).astype(np.int32)


def _gates_and_heights(site: Site, sweep: Sweep, max_range_m: float) -> tuple[NDArray[np.int32], Floats]:
    """For each step of ground distance the gate (-1: none) and the height of the beam, metres above sea level."""
    steps = _steps(max_range_m)
    angle = np.arange(steps + 1) * DISTANCE_STEP_M / EFFECTIVE_EARTH_M
    slope = np.deg2rad(sweep.elevation)
    antenna = EFFECTIVE_EARTH_M + site.altitude
    slant = antenna * np.sin(angle) / np.cos(slope + angle)
    height = antenna * np.cos(slope) / np.cos(slope + angle) - EFFECTIVE_EARTH_M
    gate = np.floor((slant - sweep.range_m) / sweep.gate_m + 0.5)
    inside = (gate >= 0) & (gate < sweep.dbz.shape[1])
    inside[steps] = False
    return np.where(inside, gate, -1).astype(np.int32), np.where(inside, height, np.nan).astype(np.float32)


def _steps(max_range_m: float) -> int:
    """Entry of the tables that stands for everything beyond the range."""
    return int(max_range_m / DISTANCE_STEP_M) + 1


@lru_cache(maxsize=256)
def _cells(site: Site, grid: Grid, max_range_m: float) -> _Cells | None:
    """Azimuth and distance of the cells within range, on the smallest window that holds them."""
    window = _window(site, grid, max_range_m)
    if window is None:
        return None
    rows, columns = window.slices
    x, y = np.meshgrid(grid.x[columns], grid.y[rows])
    lon, lat = Transformer.from_crs(grid.projection, "EPSG:4326", always_xy=True).transform(x, y)
    here = np.full(lon.shape, site.longitude), np.full(lon.shape, site.latitude)
    azimuth, _, distance = Geod(ellps="WGS84").inv(*here, lon, lat)
    step = np.rint(distance / DISTANCE_STEP_M)
    step[distance > max_range_m] = _steps(max_range_m)
    turn = np.rint(azimuth % 360 * (AZIMUTH_STEPS / 360)) % AZIMUTH_STEPS
    return _Cells(window, turn.astype(np.uint16), step.astype(np.uint16))


def _window(site: Site, grid: Grid, max_range_m: float) -> Window | None:
    """Rows and columns around the circle of ``max_range_m``; None if it does not touch the grid."""
    bearings = np.arange(0.0, 360.0, 5.0)
    here = np.full(bearings.shape, site.longitude), np.full(bearings.shape, site.latitude)
    lon, lat, _ = Geod(ellps="WGS84").fwd(*here, bearings, np.full(bearings.shape, 1.01 * max_range_m))
    x, y = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True).transform(lon, lat)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    columns = (np.array([x.min(), x.max()]) - grid.west) / grid.dx
    rows = (grid.north - np.array([y.max(), y.min()])) / grid.dy
    left, right = max(0, int(np.floor(columns[0]))), min(grid.shape[1], int(np.ceil(columns[1])) + 1)
    top, bottom = max(0, int(np.floor(rows[0]))), min(grid.shape[0], int(np.ceil(rows[1])) + 1)
    return Window(top, bottom, left, right) if top < bottom and left < right else None

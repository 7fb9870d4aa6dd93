"""Several radars on one grid: a quality-weighted mean in Z, or the maximum."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.radar.gridding import GriddedVolume, Level
from pipeline.radar.volume import NO_ECHO_DBZ, Floats

Combination = Literal["weighted", "max"]

# a beam this far from the altitude asked for counts 1/e
HEIGHT_SCALE_M = 1000.0


@dataclass(frozen=True)
class Mosaic:
    """The fields of all radars.

    Attributes:
        dbz: (levels, rows, columns) of the whole grid; NaN where no radar measured, NO_ECHO_DBZ where none saw an echo.
        removed: (rows, columns); no radar has a value, and quality control took one out.
        radars: names of those that took part.
    """

    dbz: Floats
    removed: NDArray[np.bool_]
    radars: tuple[str, ...]


def combine(
    volumes: list[GriddedVolume], shape: tuple[int, int], levels: tuple[Level, ...], how: Combination = "weighted"
) -> Mosaic:
    """Combine what radars measured of the same instant, level by level; a column maximum always by the maximum.

    A radar that measured no echo votes for none; one that measured nothing has no vote. The maximum is safe against
    attenuation and blockage, but keeps every clutter echo and inflates rain areas; so the mean is the default.
    """
    volumes = sorted(volumes, key=lambda v: v.radar)
    removed = np.zeros(shape, bool)
    for volume in volumes:
        removed[volume.window.slices] |= volume.removed
    fields = np.full((len(levels), *shape), np.nan, np.float32)
    for n, level in enumerate(levels):
        if how == "max" or level.kind == "column_max":
            for volume in volumes:
                part = fields[n][volume.window.slices]
                np.fmax(part, volume.dbz[n], out=part)
        else:
            fields[n] = _weighted(volumes, n, shape, level)
    radars = tuple(volume.radar for volume in volumes if not np.isnan(volume.dbz).all())
    return Mosaic(fields, removed & np.isnan(fields[0]), radars)


def _weighted(volumes: list[GriddedVolume], n: int, shape: tuple[int, int], level: Level) -> Floats:
    """Mean in Z; a beam near the altitude asked for (for the lowest beam: near sea level) weighs more."""
    total, weight = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    wanted = level.altitude_m if level.kind == "cappi" else 0.0
    for volume in volumes:
        part, dbz = volume.window.slices, volume.dbz[n]
        valid = ~np.isnan(dbz)
        away = (np.where(valid, volume.height[n], wanted) - wanted) / HEIGHT_SCALE_M
        # never zero, so that a lone distant radar still counts
        w = np.where(valid, np.maximum(np.exp(-(away**2)), 1e-3), 0.0)
        total[part] += w * np.where(valid & (dbz > NO_ECHO_DBZ), 10 ** (np.where(valid, dbz, 0.0) / 10), 0.0)
        weight[part] += w
    measured = weight > 0
    mean = total / np.where(measured, weight, 1.0)
    dbz = np.where(mean > 10 ** (NO_ECHO_DBZ / 10), 10 * np.log10(np.maximum(mean, 1e-9)), NO_ECHO_DBZ)
    return np.where(measured, dbz, np.nan).astype(np.float32)

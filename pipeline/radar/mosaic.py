"""Several radars on one grid: a quality-weighted mean in Z, or the maximum."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.radar.gridding import GriddedVolume
from pipeline.radar.volume import NO_ECHO_DBZ, Floats

Combination = Literal["weighted", "max"]

# a beam this far from the altitude asked for counts 1/e
HEIGHT_SCALE_M = 1000.0


@dataclass(frozen=True)
class Mosaic:
    """The field of all radars.

    Attributes:
        dbz: (rows, columns) of the whole grid; NaN where no radar measured, NO_ECHO_DBZ where none saw an echo.
        removed: no radar has a value, and quality control took one out.
        radars: names of those that took part.
    """

    dbz: Floats
    removed: NDArray[np.bool_]
    radars: tuple[str, ...]


def combine(
    volumes: list[GriddedVolume], shape: tuple[int, int], altitude_m: float, how: Combination = "weighted"
) -> Mosaic:
    """Combine what radars measured of the same instant.

    A radar that measured no echo votes for none; one that measured nothing has no vote. The maximum is safe against
    attenuation and blockage, but keeps every clutter echo and inflates rain areas; so the mean is the default.
    """
    total, weight = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    highest = np.full(shape, np.nan, np.float32)
    removed = np.zeros(shape, bool)
    taking_part = []
    for volume in sorted(volumes, key=lambda v: v.radar):
        part = volume.window.slices
        valid = ~np.isnan(volume.dbz)
        removed[part] |= volume.removed
        if not valid.any():
            continue
        taking_part.append(volume.radar)
        highest[part] = np.fmax(highest[part], volume.dbz)
        away = (np.where(valid, volume.height, altitude_m) - altitude_m) / HEIGHT_SCALE_M
        # never zero, so that a lone distant radar still counts
        w = np.where(valid, np.maximum(np.exp(-(away**2)), 1e-3), 0.0)
        z = np.where(valid & (volume.dbz > NO_ECHO_DBZ), 10 ** (np.where(valid, volume.dbz, 0.0) / 10), 0.0)
        total[part] += w * z
        weight[part] += w
    measured = weight > 0
    if how == "max":
        dbz = highest
    else:
        mean = total / np.where(measured, weight, 1.0)
        dbz = np.where(mean > 10 ** (NO_ECHO_DBZ / 10), 10 * np.log10(np.maximum(mean, 1e-9)), NO_ECHO_DBZ)
        dbz = np.where(measured, dbz, np.nan).astype(np.float32)
    return Mosaic(dbz, removed & ~measured, tuple(taking_part))

"""Rain rate, dBZ and the 0-255 pixel; and how a decoded field becomes a frame.

pixel = floor(255 (dBZ - dbz_min) / (dbz_max - dbz_min) + 0.5), clipped. Rain below the drizzle floor is no echo.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.domain import DRIZZLE_FLOOR_MM_H, ZR, Domain, NativeGrid, Scale
from pipeline.errors import BadInput
from pipeline.sources.contract import RainField

NO_ECHO_DBZ = -32.0

# cell states
ECHO, NO_COVERAGE, NO_ECHO, ADVECTED, REMOVED = 0, 1, 2, 3, 4
NEVER_WRITTEN = 255

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """One image of a domain.

    Attributes:
        pixels: (channels, rows, columns) uint8; 0 where there is no echo, no coverage or a removed cell.
        state: (rows, columns) uint8, the cell states above; of several channels, those of the first.
    """

    pixels: Pixels
    state: Pixels

    @property
    def rain(self) -> Pixels:
        """The first channel, (rows, columns): the rain that is forecast and verified."""
        return np.asarray(self.pixels[0])

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Cells that were measured at this time."""
        return np.isin(self.state, (ECHO, NO_ECHO))


def reflectivity_of_rate(rate: Floats, zr: ZR) -> Floats:
    """Z = a R**b in dBZ; rain rate 0 gives NO_ECHO_DBZ, NaN stays NaN."""
    with np.errstate(divide="ignore"):
        dbz = 10 * np.log10(zr.a) + 10 * zr.b * np.log10(rate)
    return np.asarray(np.maximum(dbz, NO_ECHO_DBZ), np.float32)


def rate_of_reflectivity(dbz: Floats, zr: ZR) -> Floats:
    """Invert Z = a R**b, mm/h; at or below NO_ECHO_DBZ exactly 0, NaN stays NaN."""
    rate = 10 ** ((dbz - 10 * np.log10(zr.a)) / (10 * zr.b))
    return np.where(dbz <= NO_ECHO_DBZ, 0.0, rate).astype(np.float32)


def pixel_of_reflectivity(dbz: Floats, scale: Scale) -> Pixels:
    """Quantise dBZ without NaN."""
    level = 255 * (np.asarray(dbz, np.float64) - scale.dbz_min) / (scale.dbz_max - scale.dbz_min)
    return np.clip(np.floor(level + 0.5), 0, 255).astype(np.uint8)


def reflectivity_of_pixel(pixels: Pixels, scale: Scale) -> Floats:
    """DBZ of a pixel, step (dbz_max - dbz_min) / 255; pixel 0 gives dbz_min."""
    return (pixels * ((scale.dbz_max - scale.dbz_min) / 255) + scale.dbz_min).astype(np.float32)


def pixel_of_rate(rate_mm_h: float, zr: ZR, scale: Scale) -> int:
    """The pixel of a threshold; an event is a pixel at or above it, in forecast and truth alike."""
    return int(pixel_of_reflectivity(reflectivity_of_rate(np.array([rate_mm_h], np.float32), zr), scale)[0])


def rate_table(zr: ZR, scale: Scale, floor_mm_h: float) -> Floats:
    """Rain rate of each of the 256 pixels, mm/h; 0 below the drizzle floor's pixel."""
    rates = rate_of_reflectivity(reflectivity_of_pixel(np.arange(256, dtype=np.uint8), scale), zr)
    rates[: max(1, pixel_of_rate(floor_mm_h, zr, scale))] = 0  # pixel 0 is no echo, whatever the scale
    return rates


def drizzle_floor(smallest_rate_mm_h: float) -> float:
    """One floor for inputs, targets and truth: 0.1 mm/h, or what the source can tell from none if that is more."""
    return max(DRIZZLE_FLOOR_MM_H, smallest_rate_mm_h)


def make_frame(field: RainField, domain: Domain) -> tuple[Frame, float]:
    """Check, coarsen and quantise a field.

    Reflectivity is held at ``quality.hail_cap_dbz``; cells above ``quality.max_dbz`` and ``quality.max_rate_mm_h`` are
    removed before the block mean. A block is observed if at least half its cells are; its value is the mean rain rate
    of those.

    Returns:
        The frame, and the share of native cells that was removed.

    Raises:
        BadInput: a rain rate is negative.
    """
    if field.quantity == "rain_rate":
        if (field.values < 0).any():
            raise BadInput(f"expected rain rates of 0 mm/h or more, found {np.nanmin(field.values):g}")
        rate = field.values
    else:
        rate = rate_of_reflectivity(np.minimum(field.values, np.float32(domain.quality.hail_cap_dbz)), domain.zr)
    removed = rate > domain.quality.max_rate_mm_h
    if field.quantity == "reflectivity" and domain.quality.max_dbz:
        removed |= field.values > domain.quality.max_dbz
    if field.removed is not None:
        removed |= field.removed
    n = domain.grid.coarsen if isinstance(domain.grid, NativeGrid) else 1
    if removed.any():
        rate = np.where(removed, np.float32(np.nan), rate)
    lost = _block_mean(removed.astype(np.float32), n) >= 0.5
    rate = _block_mean(rate, n)
    observed = ~np.isnan(rate)
    floor = pixel_of_rate(drizzle_floor(field.smallest_rate_mm_h), domain.zr, domain.scale)
    pixels = pixel_of_reflectivity(
        reflectivity_of_rate(np.where(observed, rate, np.float32(0)), domain.zr), domain.scale
    )
    pixels[pixels < floor] = 0
    state = np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8)
    state[~observed] = NO_COVERAGE
    state[~observed & lost] = REMOVED
    return Frame(pixels[None], state), float(removed.mean())


def join_channels(frames: Sequence[Frame]) -> Frame:
    """One frame of several channels, observed where all are."""
    pixels, state = np.concatenate([frame.pixels for frame in frames]), frames[0].state
    lost = np.any([~frame.observed for frame in frames], axis=0)
    pixels = np.where(lost, 0, pixels).astype(np.uint8)
    return Frame(pixels, np.where(lost & frames[0].observed, NO_COVERAGE, state).astype(np.uint8))


def _block_mean(values: Floats, n: int) -> Floats:
    """Mean over n x n blocks of the cells that are not NaN; NaN where fewer than half are."""
    if n == 1:
        return values
    rows, columns = values.shape[0] // n, values.shape[1] // n
    blocks = values[: rows * n, : columns * n].reshape(rows, n, columns, n)
    valid = ~np.isnan(blocks)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    mean = total / np.maximum(count, 1)
    return np.where(2 * count >= n * n, mean, np.nan).astype(np.float32)

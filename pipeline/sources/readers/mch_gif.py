"""MeteoSwiss precipitation composites (palette GIF), e.g. AQC161932045V_00005.801.gif (year, day of year, time).

The palette INDEX i is the value: 0 and 1 dry, 251 and above not observed, else mm in 5 minutes by the rule of the
comment inside the file ("mmh2LASSEN8bit"): (10**((i - 71.5) / 20) / 316)**(1 / 1.5).
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import Reader, Reading, check_shape, decoding

_PER_HOUR = 12.0
_LOWEST, _OUTSIDE = 2, 251
# Swiss grid LV03: outer edges of the 710 x 640 km composite
_WEST_EDGE, _NORTH_EDGE, _CELL = 255_000.0, 480_000.0, 1000.0
_SHAPE = (640, 710)


def _rates() -> np.ndarray:
    index = np.arange(256, dtype=np.float64)
    rate = _PER_HOUR * (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
    rate[:_LOWEST] = 0
    rate[_OUTSIDE:] = np.nan
    return rate.astype(np.float32)


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one composite to mm/h."""
    with decoding(path, "a whole GIF"), _open(path) as image:
        check_shape(path, (image.height, image.width))
        comment = image.info.get("comment", b"").decode("ascii", errors="replace")
        mode, index = image.mode, np.array(image)
    if mode != "P" or index.shape != _SHAPE:
        raise BadInput(f"{path.name}: expected a palette image of {_SHAPE}, found mode {mode} of {index.shape}")
    found = re.search(r"PRDT=AQC(\d{9}) SCALE=(\w+)", comment)
    if found is None or found.group(2) != "mmh2LASSEN8bitmm_mn":
        raise BadInput(
            f"{path.name}: expected product AQC on scale mmh2LASSEN8bitmm_mn, found comment {comment[:120]!r}"
        )
    with decoding(path, "a composite with a time in its comment"):
        time = datetime.strptime(found.group(1), "%y%j%H%M").replace(tzinfo=UTC)
    rates = _rates()
    grid = Grid("EPSG:21781", _SHAPE, _WEST_EDGE + _CELL / 2, _NORTH_EDGE - _CELL / 2, _CELL, _CELL)
    return RainField(rates[index], "rain_rate", grid, time, float(rates[_LOWEST]), 3600 / _PER_HOUR)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=["GIF"])
    except Image.DecompressionBombError as err:
        raise BadInput(f"{path.name}: more pixels than a composite has: {err}") from err


READER = Reader(re.compile(r"AQC(?P<time>\d{9})[A-Z]_\d{5}\.\d{3}\.gif"), "%y%j%H%M", read)

"""MRMS PrecipRate mosaics (GRIB2, local discipline 209/6/1), e.g. PrecipRate_00.00_20190610-000000.grib2 or .grib2.gz.

mm/h on a latitude-longitude grid; -3 is no coverage, 0 is dry. Instantaneous: the time is the valid time.
"""

import gzip
import re
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import MAX_CELLS, Reader, check_shape

_NO_COVERAGE = -3.0
_PRECIP_RATE = (209, 6, 1)
_SMALLEST_RATE_MM_H = 0.1  # packed with one decimal


def read(path: Path) -> RainField:
    """Decode one mosaic to mm/h."""
    import eccodes  # 0.2 s and a C library: only for those who read GRIB

    message = _bytes(path)
    try:
        handle = eccodes.codes_new_from_message(message)
    except eccodes.CodesInternalError as err:
        raise BadInput(f"{path.name}: not a whole GRIB message: {err}") from err
    try:
        get = lambda key: eccodes.codes_get(handle, key)  # noqa: E731
        found = tuple(int(get(k)) for k in ("discipline", "parameterCategory", "parameterNumber"))
        if found != _PRECIP_RATE or get("gridType") != "regular_ll":
            raise BadInput(f"{path.name}: expected PrecipRate {_PRECIP_RATE} on a lat-lon grid, found {found}")
        if int(get("jScansPositively")) or int(get("iScansNegatively")):
            raise BadInput(f"{path.name}: expected rows from north to south and columns from west to east")
        shape = check_shape(path, (int(get("Nj")), int(get("Ni"))))
        dx, dy = (float(get(f"{axis}DirectionIncrementInDegrees")) for axis in "ij")
        west, north = (float(get(f"{axis}OfFirstGridPointInDegrees")) for axis in ("longitude", "latitude"))
        clock = f"{int(get('validityDate')):08d}{int(get('validityTime')):04d}{int(get('second')):02d}"
        values = eccodes.codes_get_values(handle)
    except eccodes.CodesInternalError as err:
        raise BadInput(f"{path.name}: the GRIB message lacks or garbles a key: {err}") from err
    finally:
        eccodes.codes_release(handle)
    rate = values.astype(np.float32).reshape(shape)
    rate[rate <= _NO_COVERAGE + 0.5] = np.nan
    np.maximum(rate, 0, out=rate)
    grid = Grid("EPSG:4326", shape, west - 360 if west > 180 else west, north, dx, dy)
    time = datetime.strptime(clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return RainField(rate, "rain_rate", grid, time, _SMALLEST_RATE_MM_H)


def _bytes(path: Path) -> bytes:
    """The message, unzipped if its first bytes say gzip, never more than a mosaic can hold."""
    with path.open("rb") as file:
        head = file.read(4)
    try:
        with gzip.open(path, "rb") if head[:2] == b"\x1f\x8b" else path.open("rb") as file:
            data = file.read(MAX_CELLS)
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise BadInput(f"{path.name}: not a whole gzip file: {err}") from err
    if data[:4] != b"GRIB" or data[-4:] != b"7777":
        raise BadInput(
            f"{path.name}: expected GRIB ... 7777, found {data[:4]!r} ... {data[-4:]!r}: truncated or foreign"
        )
    return data


READER = Reader(re.compile(r"(?:MRMS_)?PrecipRate_00\.00_(?P<time>\d{8}-\d{6})\.grib2(?:\.gz)?"), "%Y%m%d-%H%M%S", read)

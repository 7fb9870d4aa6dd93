"""MRMS PrecipRate mosaics (GRIB2, local discipline 209/6/1), e.g. PrecipRate_00.00_20190610-000000.grib2 or .grib2.gz.

mm/h on a latitude-longitude grid; -3 is no coverage, -1 missing, 0 dry (other MRMS products use -99 and -999 too: no
negative value is rain). Instantaneous: the time is the valid time.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import Reader, Reading, check_shape, decoding, raise_machine_fault, unzipped

# 0 may come out of the packing as a little less
_HALF_A_STEP = 0.05
_LEFT_OUT = 1e30  # what we ask the library to give for cells outside of a bitmap
_PRECIP_RATE = (209, 6, 1)
_SMALLEST_RATE_MM_H = 0.1  # packed with one decimal


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one mosaic to mm/h. Negative values and cells that a bitmap leaves out are not observed, 0 is dry."""
    import eccodes  # 0.2 s and a C library: only for those who read GRIB

    message = _bytes(path)
    try:
        handle = eccodes.codes_new_from_message(message)
    except eccodes.CodesInternalError as err:
        raise_machine_fault(path, err)
        raise BadInput(f"{path.name}: not a whole GRIB message (the library says: {err})") from err
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
        eccodes.codes_set(handle, "missingValue", _LEFT_OUT)
        values = eccodes.codes_get_values(handle)
    except eccodes.CodesInternalError as err:
        raise_machine_fault(path, err)
        raise BadInput(f"{path.name}: the GRIB message lacks or garbles a key (the library says: {err})") from err
    finally:
        eccodes.codes_release(handle)
    rate = values.astype(np.float32).reshape(shape)
    rate[(rate < -_HALF_A_STEP) | (rate >= _LEFT_OUT / 2)] = np.nan
    np.maximum(rate, 0, out=rate)
    grid = Grid("EPSG:4326", shape, west - 360 if west > 180 else west, north, dx, dy)
    with decoding(path, "a message with a valid time"):
        time = datetime.strptime(clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return RainField(rate, "rain_rate", grid, time, _SMALLEST_RATE_MM_H)


def _bytes(path: Path) -> bytes:
    """The message, unzipped if its first bytes say gzip."""
    data = unzipped(path)
    if data[:4] != b"GRIB" or data[-4:] != b"7777":
        raise BadInput(
            f"{path.name}: expected GRIB ... 7777, found {data[:4]!r} ... {data[-4:]!r}: truncated or foreign"
        )
    return data


READER = Reader(re.compile(r"(?:MRMS_)?PrecipRate_00\.00_(?P<time>\d{8}-\d{6})\.grib2(?:\.gz)?"), "%Y%m%d-%H%M%S", read)

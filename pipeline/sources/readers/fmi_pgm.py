"""FMI reflectivity composites (gzip PGM), e.g. 201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz.

dBZ = (value - 64) / 2; 0 is no echo (-32 dBZ), the largest value is outside. Metadata stand in header comments.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pyproj import Transformer
from pyproj.exceptions import CRSError, ProjError

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import Reader, Reading, check_shape, unzipped

# 0.1 mm/h lies far above the sensitivity of a reflectivity composite
_SMALLEST_RATE_MM_H = 0.1
# the header names no ellipsoid; this sphere reproduces its metres per pixel from its corners to 7 digits
_SPHERE = "+a=6371288 +b=6371288"


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one composite to dBZ."""
    raw = unzipped(path)
    match = re.match(rb"P5\s(?P<comments>(?:#[^\n]*\n)+)(?P<width>\d+) (?P<height>\d+)\n(?P<top>\d+)\n", raw)
    if match is None:
        raise BadInput(f"{path.name}: expected a P5 PGM with header comments, found {raw[:16]!r}")
    comments = match.group("comments").decode("ascii", errors="replace")
    header = {
        words[1]: words[2:] for line in comments.splitlines() if len(words := line.split()) > 2 and words[0] == "#"
    }
    rows, columns = check_shape(path, (int(match.group("height")), int(match.group("width"))))
    body = raw[match.end() :]
    if len(body) != rows * columns or int(match.group("top")) != 255:
        raise BadInput(f"{path.name}: expected {rows} x {columns} bytes, found {len(body)}: truncated?")
    values = np.frombuffer(body, np.uint8).reshape(rows, columns)
    dbz = (values.astype(np.float32) - np.float32(64)) / np.float32(2)
    dbz[values == 255] = np.nan
    try:
        if header["type"][0] != "stereographic" or "Reflectivity" not in header["param"][0]:
            raise BadInput(
                f"{path.name}: expected stereographic reflectivity, found {header['type']} {header['param']}"
            )
        time = datetime.strptime(header["obstime"][0], "%Y%m%d%H%M").replace(tzinfo=UTC)
        crs = (
            f"+proj=stere +lat_0={float(header['centrallatitude'][0])} +lon_0={float(header['centrallongitude'][0])} "
            f"+lat_ts={float(header['truelatitude'][0])} {_SPHERE} +units=m +type=crs"
        )
        to_grid = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        west, south = to_grid.transform(float(header["bottomleft"][0]), float(header["bottomleft"][1]))
        east, north = to_grid.transform(float(header["topright"][0]), float(header["topright"][1]))
        stated = float(header["metersperpixel_x"][0])
    except (KeyError, ValueError, IndexError, CRSError, ProjError) as err:
        raise BadInput(f"{path.name}: the header lacks or garbles {err}; it has {', '.join(header)}") from err
    dx, dy = (east - west) / columns, (north - south) / rows
    if not abs(dx - stated) < 0.001 * stated:
        raise BadInput(f"{path.name}: corners give {dx:.1f} m per pixel, the header says {stated:.1f} m")
    grid = Grid(crs, (rows, columns), west + dx / 2, north - dy / 2, dx, dy)
    return RainField(dbz, "reflectivity", grid, time, _SMALLEST_RATE_MM_H)


READER = Reader(re.compile(r"(?P<time>\d{12})_fmi\.radar\.composite\.\w+\.pgm\.gz"), "%Y%m%d%H%M", read)

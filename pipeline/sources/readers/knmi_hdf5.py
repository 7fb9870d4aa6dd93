"""KNMI precipitation composites (KNMI HDF5), e.g. RAD_NL25_RAP_5min_201008260000.h5.

``image1/image_data`` holds mm per 5 minutes as GEO = gain * PV + offset; the name carries the END of the interval.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Geod
from pyproj.exceptions import CRSError, ProjError

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.codes import observed_values
from pipeline.sources.readers.contract import Reader, Reading, check_shape, number, open_hdf5, text

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_FORMULA = re.compile(rf"\s*GEO\s*=\s*{_NUMBER}\s*\*\s*PV\s*(?:\+?\s*{_NUMBER}|-\s*{_NUMBER})?\s*", re.IGNORECASE)
_TIME = "%d-%b-%Y;%H:%M:%S.%f"
# an axis of the earth is 6378 km or 6378137 m: nothing lies between
_KM_BELOW = 1e5
# the corners in the header have three decimals, of a degree: 0.1 km
_CORNER_TOLERANCE_KM = 2.0


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one accumulation to mm/h.

    The codes of missing data and out of image are not observed, 0 mm is dry. Where the code of missing data is that of
    0 mm, dry and missing cannot be told apart, and the settings say what they are.
    """
    image = reading.dataset or "image1"
    with open_hdf5(path) as file:
        data = file[f"{image}/image_data"]
        rows, columns = check_shape(path, data.shape)
        calibration = file[f"{image}/calibration"].attrs
        parameter = text(file[image].attrs["image_geo_parameter"])
        formula = text(calibration["calibration_formulas"])
        codes = [int(number(calibration[f"calibration_{k}"])) for k in ("missing_data", "out_of_image")]
        start, end = (
            _time(path, text(file["overview"].attrs[f"product_datetime_{edge}"])) for edge in ("start", "end")
        )
        grid = _grid(path, file["geographic"].attrs, text(_projection(file)), (rows, columns))
        corners = file["geographic"].attrs.get("geo_product_corners")
        raw = data[:]
    _compare_corners(path, grid, corners)
    match = _FORMULA.fullmatch(formula)
    if match is None or "MM" not in parameter:
        raise BadInput(f"{path.name}: expected mm by GEO=a*PV+b, found {parameter!r} by {formula!r}")
    gain, offset = float(match[1]), float(match[2] or 0) - float(match[3] or 0)
    hours = (end - start).total_seconds() / 3600
    if not 0 < hours <= 24:
        raise BadInput(f"{path.name}: accumulation from {start} to {end} is not a period of at most a day")
    rate = (raw.astype(np.float32) * np.float32(gain) + np.float32(offset)) / np.float32(hours)
    no_data = np.isin(raw, codes)
    shared = [code for code in codes if abs(code * gain + offset) < gain / 2]
    rate = observed_values(path.name, rate, "rain_rate", no_data, np.isin(raw, shared), reading.shared_code)
    return RainField(rate, "rain_rate", grid, end, gain / hours, hours * 3600)


def _projection(file: Any) -> Any:
    return file["geographic/map_projection"].attrs["projection_proj4_params"]


def _grid(path: Path, geographic: Any, proj4: str, shape: tuple[int, int]) -> Grid:
    """Offsets are in pixels from the projection's origin, rows run southward, sizes are in km unless they say M."""
    dx, dy = number(geographic["geo_pixel_size_x"]), number(geographic["geo_pixel_size_y"])
    column0, row0 = number(geographic["geo_column_offset"]), number(geographic["geo_row_offset"])
    unit = text(geographic["geo_dim_pixel"]).upper() if "geo_dim_pixel" in geographic else "KM,KM"
    if unit not in ("KM,KM", "M,M") or not (dx > 0 > dy):
        raise BadInput(
            f"{path.name}: expected pixels in KM,KM or M,M, to the east and to the south, found {dx:g} x {dy:g} {unit}"
        )
    metres = 1000.0 if unit == "KM,KM" else 1.0
    return Grid(
        crs=_in_metres(path, proj4),
        shape=shape,
        west=(column0 + 0.5) * dx * metres,
        north=(row0 + 0.5) * dy * metres,
        dx=dx * metres,
        dy=-dy * metres,
    )


def _in_metres(path: Path, proj4: str) -> str:
    """The projection in metres; KNMI gives the earth's axes in km or in metres, and shifts in the unit of the axes."""
    parameters = dict(re.findall(r"\+?\b([A-Za-z_0-9]+)(?:=(\S+))?", proj4))
    for name in ("units", "to_meter", "type", "no_defs"):
        parameters.pop(name, None)
    try:
        if float(parameters.get("a", _KM_BELOW)) < _KM_BELOW:
            for name in {"a", "b", "x_0", "y_0"} & set(parameters):
                parameters[name] = f"{float(parameters[name]) * 1000:.10g}"
    except ValueError as err:
        raise BadInput(f"{path.name}: expected numbers in the projection, found {proj4!r}") from err
    return " ".join(f"+{name}={value}" if value else f"+{name}" for name, value in parameters.items()) + (
        " +units=m +type=crs"
    )


def _compare_corners(path: Path, grid: Grid, corners: Any) -> None:
    """The header names the outer corners, longitude and latitude: lower left, upper left, upper right, lower right."""
    if corners is None or np.size(corners) != 8:
        return
    lon, lat = np.asarray(corners, np.float64).reshape(4, 2).T
    (west, east), (south, north) = (
        (grid.west - grid.dx / 2, grid.x[-1] + grid.dx / 2),
        (grid.y[-1] - grid.dy / 2, grid.north + grid.dy / 2),
    )
    try:
        ours = grid.degrees([west, west, east, east], [south, north, north, south])
    except (CRSError, ProjError) as err:
        raise BadInput(f"{path.name}: PROJ makes nothing of the projection {grid.crs!r}") from err
    apart = Geod(ellps="WGS84").inv(*ours, lon, lat)[2] if np.isfinite(ours).all() else np.full(4, np.inf)
    worst = float(np.max(apart)) / 1000
    if not worst <= max(_CORNER_TOLERANCE_KM, 2 * grid.dx / 1000):
        raise BadInput(
            f"{path.name}: by its projection {grid.crs!r} a corner lies {worst:.0f} km from where the header has it "
            "(geo_product_corners)"
        )


def _time(path: Path, given: str) -> datetime:
    try:
        return datetime.strptime(given, _TIME).replace(tzinfo=UTC)
    except ValueError as err:
        raise BadInput(f"{path.name}: expected a time like 26-AUG-2010;00:05:00.000, found {given!r}") from err


READER = Reader(re.compile(r"RAD_\w+_(?P<time>\d{12})\.h5"), "%Y%m%d%H%M", read)

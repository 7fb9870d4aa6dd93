"""KNMI precipitation composites (KNMI HDF5), e.g. RAD_NL25_RAP_5min_201008260000.h5.

``image1/image_data`` holds mm per 5 minutes as GEO = gain * PV + offset; the name carries the END of the interval.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import Reader, check_shape, number, open_hdf5, text

_FORMULA = re.compile(r"GEO\s*=\s*([-+.\dEe]+)\s*\*\s*PV\s*([-+][.\d]+)?")
_TIME = "%d-%b-%Y;%H:%M:%S.%f"


def read(path: Path) -> RainField:
    """Decode one 5-minute accumulation to mm/h. The out-of-image code is not observed, 0 is dry."""
    with open_hdf5(path) as file:
        data = file["image1/image_data"]
        rows, columns = check_shape(path, data.shape)
        calibration = file["image1/calibration"].attrs
        parameter = text(file["image1"].attrs["image_geo_parameter"])
        formula = text(calibration["calibration_formulas"])
        missing_codes = {int(number(calibration[f"calibration_{k}"])) for k in ("missing_data", "out_of_image")}
        overview = {k: text(v) for k, v in file["overview"].attrs.items() if k.startswith("product_datetime")}
        geographic = file["geographic"].attrs
        proj4 = text(file["geographic/map_projection"].attrs["projection_proj4_params"])
        dx, dy = number(geographic["geo_pixel_size_x"]), number(geographic["geo_pixel_size_y"])
        column0, row0 = number(geographic["geo_column_offset"]), number(geographic["geo_row_offset"])
        raw = data[:]
    match = _FORMULA.fullmatch(formula)
    if match is None or "MM" not in parameter:
        raise BadInput(f"{path.name}: expected mm by GEO=a*PV+b, found {parameter!r} by {formula!r}")
    gain, offset = float(match.group(1)), float(match.group(2) or 0)
    start, end = (_time(path, overview[f"product_datetime_{edge}"]) for edge in ("start", "end"))
    hours = (end - start).total_seconds() / 3600
    if not 0 < hours <= 24:
        raise BadInput(f"{path.name}: accumulation from {start} to {end} is not a period of at most a day")
    rate = (raw.astype(np.float32) * gain + offset) / hours
    rate[np.isin(raw, list(missing_codes))] = np.nan
    # the proj4 string counts in km, offsets are in pixels from the projection's origin, rows run southward
    grid = Grid(
        crs=_in_metres(proj4),
        shape=(rows, columns),
        west=(column0 + 0.5) * dx * 1000,
        north=(row0 + 0.5) * dy * 1000,
        dx=dx * 1000,
        dy=-dy * 1000,
    )
    return RainField(rate, "rain_rate", grid, end, gain / hours, hours * 3600)


def _in_metres(proj4: str) -> str:
    """KNMI gives the earth's axes in km."""

    def scaled(match: re.Match[str]) -> str:
        return f"+{match.group(1)}={float(match.group(2)) * 1000:.10g}"

    return re.sub(r"\+([ab])=([\d.]+)", scaled, proj4) + " +units=m +type=crs"


def _time(path: Path, given: str) -> datetime:
    try:
        return datetime.strptime(given, _TIME).replace(tzinfo=UTC)
    except ValueError as err:
        raise BadInput(f"{path.name}: expected a time like 26-AUG-2010;00:05:00.000, found {given!r}") from err


READER = Reader(re.compile(r"RAD_\w+_(?P<time>\d{12})\.h5"), "%Y%m%d%H%M", read)

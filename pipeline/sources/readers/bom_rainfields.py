"""Bureau of Meteorology Rainfields accumulations (NetCDF-4), e.g. 66_20201031_000000.prcp-c10.nc.

kg m-2 per accumulation period (10 minutes in c10); the time of the name is the END of the period.
"""

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
from pyproj import CRS

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import RainField
from pipeline.sources.readers.contract import Reader, Reading, check_shape, number, open_hdf5, text

_METRES = {"km": 1000.0, "m": 1.0}


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one accumulation to mm/h. Negative codes and the fill value are not observed, 0 is dry."""
    with open_hdf5(path) as file:
        data = file["precipitation"]
        if text(data.attrs["units"]) != "kg m-2":
            raise BadInput(f"{path.name}: expected precipitation in kg m-2, found {text(data.attrs['units'])!r}")
        rows, columns = check_shape(path, data.shape)
        raw = data[:]
        fills = [number(data.attrs[key]) for key in ("_FillValue", "missing_value") if key in data.attrs]
        scale, offset = number(data.attrs["scale_factor"]), number(data.attrs["add_offset"])
        start, end = int(number(file["start_time"][()])), int(number(file["valid_time"][()]))
        if file["x"].shape != (columns,) or file["y"].shape != (rows,) or min(rows, columns) < 2:
            raise BadInput(
                f"{path.name}: x {file['x'].shape} and y {file['y'].shape} do not fit {rows} x {columns} cells"
            )
        x, y = file["x"][:], file["y"][:]
        metres = _METRES.get(unit := text(file["x"].attrs["units"]), 0.0)
        mapping = {k: v for k, v in file["proj"].attrs.items() if k != "_Netcdf4Dimid"}
    if not metres:
        raise BadInput(f"{path.name}: expected x in {' or '.join(_METRES)}, found {unit!r}")
    hours = (end - start) / 3600
    if not 0 < hours <= 24:
        raise BadInput(f"{path.name}: accumulation from {start} to {end} s is not a period of at most a day")
    rate = (raw.astype(np.float32) * scale + offset) / hours
    # _FillValue -1, and -2, which no attribute explains
    rate[(raw < 0) | (rate < 0) | np.isin(raw, fills)] = np.nan
    if y[0] < y[-1]:
        rate, y = rate[::-1], y[::-1]
    cf = {k: text(v) if isinstance(v, bytes) else np.asarray(v).squeeze().tolist() for k, v in mapping.items()}
    grid = Grid(
        crs=_wkt(json.dumps(cf)),
        shape=(rows, columns),
        west=float(x[0]) * metres,
        north=float(y[0]) * metres,
        dx=float(x[-1] - x[0]) / (columns - 1) * metres,
        dy=float(y[0] - y[-1]) / (rows - 1) * metres,
    )
    return RainField(rate, "rain_rate", grid, datetime.fromtimestamp(end, UTC), scale / hours, hours * 3600)


@lru_cache(maxsize=16)
def _wkt(mapping: str) -> str:
    """CRS of a CF grid mapping; looking up its ellipsoid takes PROJ 0.2 s, so once per mapping."""
    return str(CRS.from_cf(json.loads(mapping)).to_wkt())


READER = Reader(re.compile(r"\d+_(?P<time>\d{8}_\d{6})\.prcp-c\d+\.nc"), "%Y%m%d_%H%M%S", read)

"""ODIM_H5 composites (object COMP or IMAGE): DBZH or TH in dBZ, RATE in mm/h, ACRR in mm over its interval.

Time stamp: the end of ``dataset1`` for ACRR, the nominal ``/what`` time otherwise. Names are free in ODIM; the first
run of 12 or 14 digits (a T or _ may stand before the clock time) is taken as the time.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
from pyproj import Transformer

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.contract import Quantity, RainField
from pipeline.sources.readers.contract import Reader, check_shape, number, open_hdf5, text

_KINDS: dict[str, Quantity] = {"DBZH": "reflectivity", "TH": "reflectivity", "RATE": "rain_rate", "ACRR": "rain_rate"}
_NO_ECHO_DBZ = -32.0


def read(path: Path) -> RainField:
    """Decode ``dataset1/data1``. nodata is not observed, undetect is no echo."""
    with open_hdf5(path) as file:
        what = file["what"].attrs
        if text(what["object"]) not in {"COMP", "IMAGE"}:
            raise BadInput(f"{path.name}: expected an ODIM composite (COMP), found object {text(what['object'])!r}")
        group = file["dataset1/data1"]
        coding = _merged(file["dataset1"], group)
        quantity = text(coding["quantity"])
        if quantity not in _KINDS:
            raise BadInput(f"{path.name}: expected one of {', '.join(_KINDS)}, found quantity {quantity!r}")
        check_shape(path, group["data"].shape)
        raw = group["data"][:]
        start, end = (_time(coding[f"{edge}date"], coding[f"{edge}time"]) for edge in ("start", "end"))
        nominal = _time(what["date"], what["time"])
        grid = _grid(file["where"].attrs, raw.shape)
        gain, offset = number(coding.get("gain", 1.0)), number(coding.get("offset", 0.0))
        codes = {k: number(coding[k]) for k in ("nodata", "undetect") if k in coding}
    coded = np.issubdtype(raw.dtype, np.integer)  # a step of the packing is then the smallest rain it can tell
    values = raw.astype(np.float32) * np.float32(gain) + np.float32(offset)
    kind = _KINDS[quantity]
    if "undetect" in codes:
        values[raw == codes["undetect"]] = 0.0 if kind == "rain_rate" else _NO_ECHO_DBZ
    if "nodata" in codes:
        values[raw == codes["nodata"]] = np.nan
    if quantity == "ACRR":
        hours = (end - start).total_seconds() / 3600
        if not 0 < hours <= 24:
            raise BadInput(f"{path.name}: accumulation from {start} to {end} is not a period of at most a day")
        return RainField(values / np.float32(hours), kind, grid, end, gain / hours * coded, hours * 3600)
    return RainField(values, kind, grid, nominal, gain * coded if kind == "rain_rate" else 0.0)


def _merged(dataset: h5py.Group, data: h5py.Group) -> dict[str, object]:
    """Attributes of ``what``: those of the data group win over those of the dataset."""
    merged: dict[str, object] = {}
    for group in (dataset, data):
        if "what" in group:
            merged.update(group["what"].attrs.items())
    return merged


def _grid(where: h5py.AttributeManager, shape: tuple[int, int]) -> Grid:
    """Corners are outer edges of the image (ODIM_H5 2.2, table 3)."""
    crs = text(where["projdef"])
    to_grid = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    west, south = to_grid.transform(number(where["LL_lon"]), number(where["LL_lat"]))
    east, north = to_grid.transform(number(where["UR_lon"]), number(where["UR_lat"]))
    rows, columns = shape
    dx, dy = (east - west) / columns, (north - south) / rows
    if not (dx > 0 and dy > 0 and np.isfinite([west, north, dx, dy]).all()):
        raise ValueError(f"corners give cells of {dx} x {dy}")
    return Grid(crs, shape, float(west + dx / 2), float(north - dy / 2), float(dx), float(dy))


def _time(date: object, clock: object) -> datetime:
    return datetime.strptime(text(date) + text(clock), "%Y%m%d%H%M%S").replace(tzinfo=UTC)


class _OdimReader(Reader):
    """Any name with a time in it."""

    def time_of(self, name: str) -> datetime | None:
        match = self.pattern.search(name)
        if match is None:
            return None
        digits = "".join(match.groups(default=""))
        try:
            return datetime.strptime(digits.ljust(14, "0"), self.time_format).replace(tzinfo=UTC)
        except ValueError:
            return None


READER = _OdimReader(re.compile(r"(?<!\d)(\d{8})[T_]?(\d{4})(\d{2})?(?!\d)"), "%Y%m%d%H%M%S", read)

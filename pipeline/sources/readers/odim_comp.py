"""ODIM_H5 composites (object COMP or IMAGE): DBZH or TH in dBZ, RATE in mm/h, ACRR in mm over its interval.

Of several quantities in a file the first of ``QUANTITIES`` is read, unless the settings say which: DBZH is what
exchanges publish most often and at the finest cadence, sums may be longer than the cadence, and TH holds the clutter
that was taken out of DBZH. Time stamp: the end of the dataset for ACRR, the nominal ``/what`` time otherwise. Names are
free in ODIM; the first run of 12 or 14 digits (a T or _ may stand before the clock time) is taken as the time.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import BadInput, OtherQuantity
from pipeline.sources.contract import Quantity, RainField
from pipeline.sources.readers.codes import has_code, observed_values
from pipeline.sources.readers.contract import (
    Reader,
    Reading,
    SharedCode,
    check_shape,
    decoding,
    number,
    open_hdf5,
    text,
)
from pipeline.sources.readers.odim_grid import odim_grid

_KINDS: dict[str, Quantity] = {
    "DBZH": "reflectivity",
    "RATE": "rain_rate",
    "ACRR": "rain_rate",
    "TH": "reflectivity",
}
QUANTITIES = tuple(_KINDS)
# a file with more groups than this is damaged, or made to keep us busy
_MOST_GROUPS = 500

_NEEDED = (
    *("object", "date", "time", "startdate", "starttime", "enddate", "endtime"),
    *("quantity", "gain", "offset", "nodata", "undetect"),
    *("projdef", "LL_lon", "LL_lat", "UR_lon", "UR_lat", "xscale", "yscale"),
)

Attributes = dict[str, Any]


def read(path: Path, reading: Reading = Reading()) -> RainField:
    """Decode one composite. nodata is not observed, undetect is no echo; what else no radar measures is not observed.

    Raises:
        BadInput: names what was expected and what was found.
        OtherQuantity: a whole composite, but of none of the quantities that are wanted.
        OSError: the machine cannot read it.
    """
    with open_hdf5(path) as file:
        what = _attributes(file, "what")
        if "object" not in what or text(what["object"]) not in {"COMP", "IMAGE"}:
            kind = f"object {text(what['object'])!r}" if "object" in what else "no what/object"
            raise BadInput(f"{path.name}: expected an ODIM composite (COMP), found {kind}")
        if _malfunctions(file):
            raise BadInput(f"{path.name}: it says itself that it is malfunctioning (how/malfunc)")
        dataset, data, coding = _chosen(path, file, reading)
        where = _attributes(file, "where") | _attributes(dataset, "where")
        check_shape(path, data["data"].shape)
        raw = data["data"][:]
    with decoding(path, "an ODIM composite with whole headers"):
        return _decoded(path, what, where, coding, raw, reading.shared_code)


def _decoded(
    path: Path, what: Attributes, where: Attributes, coding: Attributes, raw: Any, shared_code: SharedCode
) -> RainField:
    """The field of a raw array (rows, columns) and the attributes that say what it means."""
    quantity = text(coding["quantity"])
    nominal = _time(path, what, "", "what")
    codes = {name: number(coding[name]) for name in ("nodata", "undetect") if name in coding}
    gain, offset = number(coding.get("gain", 1.0)), number(coding.get("offset", 0.0))
    coded = np.issubdtype(raw.dtype, np.integer)  # a step of the packing is then the smallest rain it can tell
    kind = _KINDS[quantity]
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32) * np.float32(gain) + np.float32(offset)
    if not (np.isfinite(gain) and gain != 0 and np.isfinite(offset)):
        raise BadInput(f"{path.name}: gain is {gain} and offset {offset}, expected numbers, and a gain other than 0")
    undetect = has_code(raw, codes["undetect"]) if "undetect" in codes else None
    no_data = has_code(raw, codes.get("nodata"))
    values = observed_values(path.name, values, kind, no_data, undetect, shared_code)
    grid = odim_grid(path.name, where, raw.shape)
    if quantity == "ACRR":
        start, end = (_time(path, coding, edge, "dataset what") for edge in ("start", "end"))
        hours = (end - start).total_seconds() / 3600
        if not 0 < hours <= 24:
            raise BadInput(f"{path.name}: accumulation from {start} to {end} is not a period of at most a day")
        return RainField(
            values / np.float32(hours), kind, grid, end, gain / hours * coded, hours * 3600, parameter=quantity
        )
    return RainField(values, kind, grid, nominal, gain * coded if kind == "rain_rate" else 0.0, parameter=quantity)


def _chosen(path: Path, file: h5py.File, reading: Reading) -> tuple[h5py.Group, h5py.Group, Attributes]:
    """Dataset, data group and its merged ``what``, of the field to read."""
    names: set[str] = set()
    refused: list[str] = []
    fields: list[tuple[int, h5py.Group, h5py.Group, Attributes]] = []
    for dataset in _numbered(file, "dataset"):
        for data in _numbered(dataset, "data"):
            coding = _attributes(dataset, "what") | _attributes(data, "what")
            name = data.name.strip("/")
            if "quantity" not in coding or reading.dataset not in ("", name, name.partition("/")[0]):
                continue
            quantity = text(coding["quantity"])
            names.add(quantity)
            if quantity not in ((reading.quantity,) if reading.quantity else QUANTITIES) or "data" not in data:
                continue
            if _malfunctions(dataset) or _malfunctions(data):
                refused.append(name)
            else:
                fields.append((QUANTITIES.index(quantity), dataset, data, coding))
    if fields:
        _, dataset, data, coding = min(fields, key=lambda field: field[0])
        return dataset, data, coding
    if refused:
        raise BadInput(f"{path.name}: {', '.join(refused)}: it says itself that it is malfunctioning (how/malfunc)")
    listed = ", ".join(sorted(names)) or "none"
    inside = f" in {reading.dataset} (source.dataset)" if reading.dataset else ""
    wanted = reading.quantity or f"one of {', '.join(QUANTITIES)}"
    refusal = OtherQuantity if names else BadInput
    raise refusal(f"{path.name}: expected {wanted}{inside}, found quantity {listed}")


def _numbered(group: h5py.Group, stem: str) -> list[h5py.Group]:
    """The groups ``stem1``, ``stem2``, ... in order."""
    numbers = sorted(int(name[len(stem) :]) for name in group if re.fullmatch(rf"{stem}\d{{1,6}}", name))
    members = (_member(group, f"{stem}{number}") for number in numbers[:_MOST_GROUPS])
    return [member for member in members if isinstance(member, h5py.Group)]


def _member(group: h5py.Group, name: str) -> Any:
    """A member of a group; None where a link leads nowhere."""
    try:
        return group[name]
    except KeyError as err:
        if "not found" in str(err) or "doesn't exist" in str(err):
            return None
        raise


def _attributes(group: h5py.Group, name: str) -> Attributes:
    """What is needed of ``what`` or ``where``; nothing else is read, so that nothing else can fail."""
    attrs = group[name].attrs if name in group else {}
    return {key: attrs[key] for key in _NEEDED if key in attrs}


def _malfunctions(group: h5py.Group) -> bool:
    """Whether the group says so of itself; ODIM writes the word, others a boolean or a number."""
    if "how" not in group or "malfunc" not in group["how"].attrs:
        return False
    return text(group["how"].attrs["malfunc"]).strip().lower() in {"true", "1", "1.0", "yes"}


def _time(path: Path, attributes: Attributes, edge: str, place: str) -> datetime:
    parts = {name: text(attributes[name]) if name in attributes else "" for name in (f"{edge}date", f"{edge}time")}
    try:
        return datetime.strptime("".join(parts.values()), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as err:
        stated = " and ".join(f"{name} {value!r}" for name, value in parts.items())
        raise BadInput(f"{path.name}: expected YYYYMMDD and HHMMSS in its {place}, found {stated}") from err


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


READER = _OdimReader(
    re.compile(r"(?<!\d)(\d{8})[T_]?(\d{4})(\d{2})?(?!\d)"), "%Y%m%d%H%M%S", read, quantities=QUANTITIES
)

"""ODIM_H5 volumes: what is needed of them, checked, as a file that xradar reads.

xradar takes headers as they come and fails on whatever it does not know. So the needed part is copied, as it is packed,
and everything else in the file may be as it likes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from pipeline.errors import BadInput, machine_fault
from pipeline.radar.formats import Readable, first_line, text
from pipeline.radar.moments import FLUCTUATION, REFLECTIVITY, RHOHV
from pipeline.radar.odim_range import metres_per_unit

# of the rays, in a sweep's how; where they are absent the rays are evenly spaced in angle and time
_OF_RAYS = ("startazA", "stopazA", "startazT", "stopazT", "startelA", "stopelA", "elangles")
_WHERE = ("nrays", "nbins", "rscale", "rstart", "a1gate", "elangle", "az_angle", "azangle")
_TIMES = {"startdate": 8, "starttime": 6, "enddate": 8, "endtime": 6}
# the version in which the distance of the first gate is in km, as the copy has it
_WRITTEN_AS = "ODIM_H5/V2_2"


@contextmanager
def needed_part(path: Path, name: str, has_site: bool, rstart_unit: str = "") -> Iterator[Readable]:
    """A copy with the best reflectivity of every sweep, its quality, and the headers that place them.

    Args:
        has_site: the position of the radar is known, and none is needed in the file.
        rstart_unit: of the distance of the first gate, ``m`` or ``km``; empty: by version and plausibility.

    Raises:
        BadInput: names the group, the attribute, what was expected and what was found.
    """
    with TemporaryDirectory(prefix="volume-") as folder:
        copy = Path(folder) / "volume"
        with h5py.File(path, "r") as source, h5py.File(copy, "w") as target:
            readable = _copy(source, target, copy, name, has_site, rstart_unit)
        yield readable


def _copy(source: h5py.File, target: h5py.File, copy: Path, name: str, has_site: bool, rstart_unit: str) -> Readable:
    if _malfunctions(source):
        raise BadInput(f"{name}: the radar was malfunctioning, as the file says (how/malfunc): it measured nothing")
    target.attrs["Conventions"] = np.bytes_(_WRITTEN_AS)
    target.create_group("what").attrs["object"] = np.bytes_(text(source["what"].attrs.get("object", b"PVOL")))
    target.create_group("where").attrs.update(_position(source, name, has_site))
    numbers = sorted(int(key[7:]) for key in source if re.fullmatch(r"dataset[1-9]\d{0,3}", key))
    if not numbers:
        raise BadInput(f"{name}: it holds no sweep: there is no group dataset1")
    unit = metres_per_unit(_first_gates(source, numbers), _version(source), name, rstart_unit)
    defects, unused, names = list[str](), list[str](), list[str]()
    for number in numbers:
        group = f"dataset{len(names) + 1}"
        try:
            reason = _copy_sweep(source[f"dataset{number}"], target.create_group(group), unit, defects)
            if reason:
                unused.append(f"dataset{number}: {reason}")
                del target[group]
            else:
                names.append(f"dataset{number}")
        except (BadInput, OSError, KeyError, ValueError, TypeError, RuntimeError) as err:
            if machine_fault(err):
                raise
            why = str(err) if isinstance(err, BadInput) else f" is damaged inside: {first_line(err)}"
            defects.append(f"dataset{number}{why}")
            del target[group]
    if not names:
        reasons = "; ".join(defects + unused)
        if defects and all("malfunctioning" in defect for defect in defects):
            raise BadInput(f"{name}: the radar was malfunctioning, so the file shows nothing: {reasons[:500]}")
        raise BadInput(f"{name}: no sweep with reflectivity can be used: {reasons[:500]}")
    announced = max(_announced(source, numbers), len(numbers) - len(unused))
    return Readable(copy, announced, tuple(defects), tuple(unused), tuple(names))


def _position(source: h5py.File, name: str, has_site: bool) -> dict[str, float]:
    where = dict(source["where"].attrs) if "where" in source else {}
    site = {key: _number(where.get(key)) for key in ("lon", "lat", "height")}
    if has_site:
        return {key: 0.0 for key in site}  # not used
    if None in site.values():
        found = ", ".join(sorted(where)) or "nothing"
        raise BadInput(
            f"{name}: the file has no position of the radar (expected lon, lat and height in where, found {found}); "
            "give it in the source's sites"
        )
    return {key: float(value) for key, value in site.items() if value is not None}


def _version(source: h5py.File) -> tuple[int, int] | None:
    """Major and minor version of ODIM, however it is spelt; None if neither place has it."""
    root = source["what"].attrs if "what" in source else {}
    for value, pattern in (
        (source.attrs.get("Conventions"), r"ODIM_H5/?\s*V?\s*(\d+)[._](\d+)"),
        (root.get("version"), r"H5rad\s*(\d+)[._](\d+)"),
    ):
        found = re.search(pattern, text(value), re.IGNORECASE) if value is not None else None
        if found:
            return int(found[1]), int(found[2])
    return None


def _first_gates(source: h5py.File, numbers: Sequence[int]) -> list[tuple[float, float, float]]:
    """Of each sweep with these numbers: distance of the first gate as written, gate length in metres, gates."""
    gates = []
    for number in numbers:
        where = source.get(f"dataset{number}/where")
        values = [_number(where.attrs.get(key)) for key in ("rstart", "rscale", "nbins")] if where is not None else []
        if values and None not in values and np.isfinite(values).all() and values[1] > 0:
            gates.append((float(values[0]), float(values[1]), float(values[2])))
    return gates


def _announced(source: h5py.File, numbers: Sequence[int]) -> int:
    """How many sweeps a volume says it has (scan_count, which few writers give); 0 if it does not say."""
    if text(source["what"].attrs.get("object", b"")) != "PVOL":
        return 0
    groups = [source, *(source[f"dataset{number}"] for number in numbers)]
    counts = [_number(group["how"].attrs.get("scan_count")) for group in groups if "how" in group]
    return max((int(count) for count in counts if count is not None and 0 < count < 1000), default=0)


def _copy_sweep(source: h5py.Group, target: h5py.Group, unit: float, defects: list[str]) -> str:
    """Copy a sweep; why it is of no use, if it is none of reflectivity.

    Raises:
        BadInput: it is damaged, or says that it is malfunctioning; the text follows the name of the sweep.
    """
    if _malfunctions(source):
        raise BadInput(": the radar was malfunctioning (how/malfunc)")
    where = _checked_where(source, unit)
    target.create_group("where").attrs.update(where)
    target.create_group("what").attrs.update(_checked_times(source))
    _copy_rays(source, target.create_group("how"), int(where["nrays"]))
    moments: dict[str, h5py.Group] = {}
    for key in sorted((k for k in source if re.fullmatch(r"data\d+", k)), key=lambda k: int(k[4:])):
        group = source.get(key)
        if isinstance(group, h5py.Group) and "what" in group and "quantity" in group["what"].attrs:
            moments.setdefault(text(group["what"].attrs["quantity"]), group)
    faults: list[str] = []
    reflectivity = [quantity for quantity in REFLECTIVITY if quantity in moments]
    if not reflectivity:
        return "no reflectivity moment among " + (", ".join(list(moments)[:10]) or "none")
    for quantity in reflectivity:
        if fault := _copy_moment(moments[quantity], target, quantity, where):
            faults.append(fault)
        else:
            break
    else:
        raise BadInput(": " + "; ".join(faults))
    quality = [quantity for quantity in (*RHOHV, FLUCTUATION) if quantity in moments]
    faults += [fault for q in quality if (fault := _copy_moment(moments[q], target, q, where))]
    defects += [f"{source.name.strip('/')}: {fault}" for fault in faults]
    return ""


def _checked_where(source: h5py.Group, unit: float) -> dict[str, float]:
    if "where" not in source:
        raise BadInput(" has no group where")
    attributes = source["where"].attrs
    where = {key: value for key in _WHERE if (value := _number(attributes.get(key))) is not None}
    for key in ("nrays", "nbins"):
        if not isinstance(where.get(key), int) or not 0 < where[key] < 10**6:
            raise BadInput(f"/where: {key} is {_shown(attributes.get(key))}, expected a number of them")
    if not (where.get("rscale") or 0) > 0 or not np.isfinite(where["rscale"]):
        raise BadInput(f"/where: rscale is {_shown(attributes.get('rscale'))}, expected more than 0 metres")
    if not np.isfinite(where.get("rstart", np.nan)):
        raise BadInput(f"/where: rstart is {_shown(attributes.get('rstart'))}, expected the start of the first gate")
    is_rhi = bool({"az_angle", "azangle"} & where.keys())
    if not is_rhi and not np.isfinite(where.get("elangle", np.nan)):
        raise BadInput(f"/where: elangle is {_shown(attributes.get('elangle'))}, expected degrees")
    return {"a1gate": 0, **where, "rstart": where["rstart"] * unit / 1000}


def _checked_times(source: h5py.Group) -> dict[str, Any]:
    attributes = source["what"].attrs if "what" in source else {}
    times = {key: text(attributes[key]).strip() for key in _TIMES if key in attributes}
    for key, digits in _TIMES.items():
        value = times.get(key, "" if key.startswith("start") else "0" * digits)
        if not re.fullmatch(rf"\d{{{digits}}}", value):
            form = "YYYYMMDD" if digits == 8 else "HHMMSS"
            raise BadInput(f"/what: {key} is {value!r}, expected {form}: the file is damaged")
    return {key: np.bytes_(value) for key, value in times.items()}


def _copy_rays(source: h5py.Group, target: h5py.Group, rays: int) -> None:
    attributes = source["how"].attrs if "how" in source else {}
    for key in _OF_RAYS:
        if key not in attributes:
            continue
        values = np.ravel(attributes[key])
        if values.dtype.kind not in "iuf":
            continue  # text, as some writers have it
        if len(values) != rays:
            raise BadInput(f"/how: {key} has {len(values)} values for {rays} rays")
        target.attrs[key] = values.astype(np.float64)


def _copy_moment(source: h5py.Group, target: h5py.Group, quantity: str, where: dict[str, float]) -> str:
    """Copy a moment; why not, if it says that it is malfunctioning or cannot be what it says."""
    short = source.name.rpartition("/")[2]
    if _malfunctions(source):
        return f"{quantity} is malfunctioning ({short}/how/malfunc)"
    data, shape = source.get("data"), (where["nrays"], where["nbins"])
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "iuf" or data.external or data.is_virtual:
        return f"{quantity} has no numbers ({short}/data)"
    if data.shape != shape:
        return f"/where has nrays {shape[0]} and nbins {shape[1]}, but {short} is of {data.shape}"
    about = {key: _number(source["what"].attrs.get(key)) for key in ("gain", "offset", "nodata", "undetect")}
    if about["gain"] is None or not np.isfinite(about["gain"]) or about["gain"] == 0:
        return f"/{short}/what: gain is {about['gain']}, expected a number but 0"
    group = target.create_group(f"data{1 + sum(key.startswith('data') for key in target)}")
    _copy_packed(data, group)
    kept = {key: value for key, value in about.items() if value is not None}
    group.create_group("what").attrs.update(quantity=np.bytes_(quantity), **kept)
    return ""


def _copy_packed(source: h5py.Dataset, target: h5py.Group) -> None:
    """The dataset as ``data``, without unpacking it (H5Ocopy spoils datasets of older files)."""
    plan = source.id.get_create_plist()
    copy = h5py.h5d.create(target.id, b"data", source.id.get_type(), source.id.get_space(), plan)
    if not source.id.get_storage_size():
        return  # nothing was ever written: it has its fill value
    if source.chunks is None:
        h5py.Dataset(copy)[...] = source[...]
        return

    def take(chunk: Any) -> None:
        mask, packed = source.id.read_direct_chunk(chunk.chunk_offset)
        copy.write_direct_chunk(chunk.chunk_offset, packed, mask)

    source.id.chunk_iter(take)


def _malfunctions(group: h5py.Group) -> bool:
    """Whether the group says in ``how/malfunc`` that the radar was out of order: True, "True", "yes", 1."""
    how = group.get("how")
    value = how.attrs.get("malfunc") if isinstance(how, h5py.Group) else None
    if value is None or not np.size(value):
        return False
    value = np.ravel(value)[0]
    if isinstance(value, (bytes, str)):
        return text(value).strip().strip("\0").lower() in {"true", "t", "yes", "1"}
    return bool(value)


def _number(value: Any) -> Any:
    """An attribute, scalar or of length 1; None if it is no number."""
    value = np.ravel(value)[0] if value is not None and np.size(value) else None
    return value.item() if isinstance(value, np.number) else None


def _shown(value: Any) -> str:
    number = _number(value)
    return str(number) if number is not None else ("missing" if value is None else repr(value)[:40])

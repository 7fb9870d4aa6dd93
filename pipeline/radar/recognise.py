"""Which format a radar file has, told by what only that format has."""

import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import h5py

from pipeline.errors import BadInput
from pipeline.radar.formats import first_line, in_words, pass_machine_fault, text


def header_time(path: Path) -> datetime:
    """Nominal time in the header of an ODIM file, for feeds whose names carry none.

    Raises:
        BadInput: the file is not ODIM or has no such time.
        OSError: it could not be read; worth another try.
    """
    try:
        with h5py.File(path, "r") as file:
            date, clock = (text(file["what"].attrs[key]) for key in ("date", "time"))
            return datetime.strptime(date + clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except (OSError, KeyError, ValueError, RuntimeError) as err:
        pass_machine_fault(err, path.name)
        raise BadInput(f"{path.name}: no time in the name, and none in an ODIM header: {first_line(err)}") from err


class Recognised(NamedTuple):
    """A format, and by what it was recognised; ``hints`` names what points to another one, or is empty."""

    kind: str
    hints: str = ""


def sniff(path: Path, name: str) -> Recognised:
    """Format of an uncompressed file by what only that format has.

    One of nexrad, odim, gamic, cfradial1, cfradial2, iris and rainbow.

    Raises:
        BadInput: none of these; says what the file begins with, or has.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise BadInput(f"{name}: the file is empty")
    if start.startswith((b"AR2V", b"ARCHIVE2")):
        return Recognised("nexrad")
    if start.startswith(b"\x89HDF"):
        return _sniff_hdf5(path, name)
    if start.startswith(b"CDF"):
        return _sniff_netcdf3(path, name)
    if re.match(rb"(\xef\xbb\xbf)?\s*<volume[\s>]", start):
        return Recognised("rainbow")
    if start.startswith(b"\x1b\x00"):
        return _sniff_iris(start, name)
    raise BadInput(f"{name}: expected a radar volume of a known format, found a file that begins with {start[:16]!r}")


def _sniff_iris(start: bytes, name: str) -> Recognised:
    """A product header (27) has a product configuration (26) in it, which says of what kind it is: 15 is RAW."""
    if len(start) < 26:
        raise BadInput(f"{name}: the file is cut off or damaged: an IRIS file without a header")
    inner, _, _, _, _, kind = struct.unpack_from("<HHIHHH", start, 12)
    if inner != 26 or kind != 15:
        found = f"a product of type {kind}" if inner == 26 else "a damaged header"
        raise BadInput(f"{name}: expected an IRIS volume (product type RAW, 15), found {found}")
    return Recognised("iris")


def _sniff_netcdf3(path: Path, name: str) -> Recognised:
    with path.open("rb") as file:
        header = file.read(2**20)  # of a classic netCDF file; the names of its variables stand in it
    if header[3:4] not in (b"\x01", b"\x02"):
        raise BadInput(f"{name}: netCDF of a kind that cannot be read (CDF{header[3:4]!r}); netCDF-4 or CDF-1, -2 can")
    if b"sweep_start_ray_index" not in header:
        raise BadInput(f"{name}: expected CfRadial, found netCDF without sweeps (no sweep_start_ray_index)")
    return Recognised("cfradial1")


def _sniff_hdf5(path: Path, name: str) -> Recognised:
    try:
        with h5py.File(path, "r") as file:
            marks = _marks(file)
            found = ", ".join(list(file)[:12]) or "nothing"
            kind = _odim_object(file)
    except (OSError, RuntimeError, KeyError, ValueError) as err:
        pass_machine_fault(err, name)
        raise BadInput(f"{name}: {in_words(err)} (HDF5: {first_line(err)})") from err
    certain = [form for form, (sure, _) in marks.items() if sure]
    if not certain and kind in {"PVOL", "SCAN"}:
        certain = ["odim"]  # with no sweep in it
    if certain:
        others = [mark for form, (_, mark) in marks.items() if mark and form != certain[0]]
        hints = f"taken for {certain[0]} because of {marks[certain[0]][1]}, but it also has {'; '.join(others)}"
        return Recognised(certain[0], hints if others else "")
    if kind:
        raise BadInput(f"{name}: expected a polar volume (PVOL, SCAN), found the ODIM object {kind!r}")
    raise BadInput(f"{name}: expected ODIM_H5, GAMIC or CfRadial, found HDF5 with {found}")


def _marks(file: h5py.File) -> dict[str, tuple[bool, str]]:
    """Per format whether the file has what only this format has, and what points to it; the surest format first."""
    scan = next((key for key in file if re.fullmatch(r"scan\d+", key)), "")
    moments = [key for key in file[scan] if key.startswith("moment_")] if scan else []
    has_rays = bool(scan) and "ray_header" in file[scan]
    sweep = next((key for key in file if re.fullmatch(r"dataset\d+", key)), "")
    has_data = bool(sweep) and any(re.fullmatch(r"data\d+", key) for key in file[sweep])
    kind = _odim_object(file)
    polar = kind in {"", "PVOL", "SCAN"}
    of_odim = f"{sweep}/data1" if has_data else (f"what/object = {kind!r} (ODIM)" if kind else "")
    return {
        "odim": (has_data and polar, of_odim),
        "gamic": (
            has_rays and bool(moments),
            f"{scan} with {', '.join(moments[:1])} and ray_header" if has_rays else "",
        ),
        "cfradial2": ("sweep_group_name" in file, "sweep_group_name" if "sweep_group_name" in file else ""),
        "cfradial1": (
            "sweep_start_ray_index" in file,
            "sweep_start_ray_index" if "sweep_start_ray_index" in file else "",
        ),
    }


def _odim_object(file: h5py.File) -> str:
    what = file.get("what")
    return text(what.attrs["object"]) if isinstance(what, h5py.Group) and "object" in what.attrs else ""

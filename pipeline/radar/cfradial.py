"""CfRadial files: rays of unequal length made rectangular, as xradar needs them, and the range in metres."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from pipeline.errors import BadInput
from pipeline.radar.formats import Readable, netcdf_engine, text
from pipeline.radar.moments import FLUCTUATION, RHOHV, reflectivity_moment

# a variable of ours: 1 where a ray has a gate, 0 behind its end, where nothing was measured
HAS_GATE = "ray_has_gate"
_METRES = {"m", "meter", "meters", "metre", "metres"}
_KILOMETRES = {"km", "kilometer", "kilometers", "kilometre", "kilometres"}
# a gate of any weather radar, metres
SHORTEST_GATE_M, LONGEST_GATE_M = 5.0, 10_000.0


@contextmanager
def rectangular(path: Path, name: str, max_bytes: int) -> Iterator[Readable]:
    """The file; or, if its rays are of unequal length (dimension n_points), a copy with as many gates in every ray.

    Raises:
        BadInput: the lengths of its rays do not fit its data, or it would be more than ``max_bytes``.
    """
    import xarray as xr

    engine: Any = netcdf_engine(path)
    with xr.open_dataset(path, engine=engine, mask_and_scale=False, decode_times=False) as data:
        is_ragged = "n_points" in data.sizes and "ray_n_gates" in data
        if is_ragged:
            filled = _filled(data, name, max_bytes)
    if not is_ragged:
        yield Readable(path)
        return
    with TemporaryDirectory(prefix="volume-") as folder:
        copy = Path(folder) / "volume"
        filled.to_netcdf(copy, engine="h5netcdf")
        yield Readable(copy)


@contextmanager
def in_metres(path: Path) -> Iterator[Readable]:
    """A CfRadial 2 file; or, if a range is in km, a copy in metres: xradar calls it metres whatever it says."""
    with h5py.File(path, "r") as file:
        ranges = [f"{group}/range" for group in ("", *file) if f"{group}/range" in file]
        wrong = [key for key in ranges if text(file[key].attrs.get("units", b"m")).strip().lower() in _KILOMETRES]
    if not wrong:
        yield Readable(path)
        return
    with TemporaryDirectory(prefix="volume-") as folder:
        copy = Path(folder) / "volume"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            for key in wrong:
                file[key][...] = file[key][...] * 1000
                file[key].attrs["units"] = np.bytes_("meters")
        yield Readable(copy)


def _filled(data: Any, name: str, max_bytes: int) -> Any:
    """The dataset with (time, range) in place of (n_points,)."""
    import xarray as xr

    counts = np.asarray(data["ray_n_gates"].values, np.int64)
    starts = (
        np.asarray(data["ray_start_index"].values, np.int64)
        if "ray_start_index" in data
        else np.cumsum(counts) - counts
    )
    points, gates = data.sizes["n_points"], int(counts.max(initial=0))
    if not len(counts) or counts.min() < 0 or starts.min() < 0 or (starts + counts).max() > points:
        raise BadInput(f"{name}: its rays (ray_start_index, ray_n_gates) go beyond its {points} points: it is damaged")
    if data["range"].dims != ("range",) or data.sizes["range"] < gates:
        raise BadInput(f"{name}: rays of up to {gates} gates, but the range is of {dict(data['range'].sizes)}")
    wanted = [reflectivity_moment(data), *RHOHV, FLUCTUATION]
    moments = [key for key in wanted if key in data and data[key].dims == ("n_points",)]
    size = len(counts) * gates * sum(data[key].dtype.itemsize for key in moments)
    if size > max_bytes:
        raise BadInput(f"{name}: {size} bytes with rays of {gates} gates; more than {max_bytes}")
    columns = np.arange(gates)
    inside = columns < counts[:, None]
    index = np.minimum(starts[:, None] + columns, points - 1)
    out = data.drop_dims("n_points").drop_vars(["ray_n_gates", "ray_start_index"], errors="ignore")
    out = out.isel(range=slice(0, gates)).load()
    for key in moments:
        # what stands behind the end of a ray does not count
        variable = data[key].variable
        out[key] = xr.Variable(("time", "range"), variable.values[index], variable.attrs)
    out[HAS_GATE] = xr.Variable(("time", "range"), inside.astype(np.int8))
    return out


def range_in_metres(ranges: Any) -> Any:
    """Distances of the gates, (gates,) metres, from a variable with its units.

    Raises:
        BadInput: other units, or gates that no weather radar has; the text follows the name of the sweep.
    """
    values = np.asarray(ranges.values, np.float64)
    units = str(ranges.attrs.get("units", "")).strip().lower()
    if units and units not in _METRES | _KILOMETRES:
        raise BadInput(f": its range is in {units!r}, expected metres or km")
    values = values * 1000 if units in _KILOMETRES else values
    gate = float(np.median(np.diff(values))) if len(values) > 1 else np.nan
    if not SHORTEST_GATE_M <= gate <= LONGEST_GATE_M:
        raise BadInput(
            f": its gates are {gate:g} m long (range in {units or 'no units'}), "
            f"expected {SHORTEST_GATE_M:g} to {LONGEST_GATE_M:g} m"
        )
    return values

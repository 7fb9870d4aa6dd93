"""Volume files of any make become sweeps; xradar reads the formats, of which it is given what can be read."""

import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from pipeline.errors import BadInput
from pipeline.radar.cfradial import HAS_GATE, in_metres, range_in_metres, rectangular
from pipeline.radar.formats import (
    Readable,
    check_sizes,
    first_line,
    in_words,
    opened,
    pass_machine_fault,
    plain_file,
)
from pipeline.radar.iris import announced_sweeps
from pipeline.radar.moments import (
    FLUCTUATION,
    RAW,
    RHOHV,
    correlation,
    decoded,
    filtered_where_both,
    reflectivity_moment,
)
from pipeline.radar.nexrad import whole_part
from pipeline.radar.odim import needed_part
from pipeline.radar.recognise import sniff
from pipeline.radar.volume import NO_ECHO_DBZ, Site, Sweep, Volume

MAX_CELLS = 4000 * 8000  # of one sweep; a larger one is a damaged header
_SMALLEST_SWEEP = (10, 10)  # rays and gates; smaller ones point up or are tests
# degrees without a ray: less is jitter of the antenna, more a scan of a sector on purpose
SMALLEST_HOLE, SECTOR = 5.0, 180.0
# the lowest sweeps of scans of one file are this close, degrees
SAME_SCAN = 0.3
# share of echo gates with which the sweep above may be without any
LITTLE_ECHO = 0.05
# so little echo proves nothing of the sweeps below
SPECKS = 0.001
# sweeps of a scan are not further from their median time
LONGEST_SCAN = timedelta(minutes=20)
# what xradar and the libraries below it raise for files that they cannot read
_OF_LIBRARIES = (
    OSError, EOFError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AssertionError, AttributeError,
    ArithmeticError, struct.error, zlib.error, ExpatError,
)  # fmt: skip


@dataclass(frozen=True)
class DecodeOptions:
    """What the files of a source do not say themselves.

    Attributes:
        site: position of the antenna where the format carries none; None takes that of the file.
        reliable_times: False where ray times are known to be wrong; sweeps then get the nominal time.
        part: (n, of): only the n-th of equal shares of the sweeps, from 0; several scans may lie in one file.
        max_bytes: of the file when decompressed; the largest volumes in use are a tenth of the default.
        rstart_unit: of the distance of the first gate in ODIM_H5, ``m`` or ``km``; empty: by version and plausibility.
    """

    site: Site | None = None
    reliable_times: bool = True
    part: tuple[int, int] = (0, 1)
    max_bytes: int = 512 * 2**20
    rstart_unit: str = ""


def read_volume(
    path: Path, radar: str, nominal_time: datetime, options: DecodeOptions = DecodeOptions(), name: str = ""
) -> Volume:
    """Decode every sweep with reflectivity. ``name`` is what errors call the file; default: its own name.

    Sweeps that cannot be read, that point up or that are sectors of a height scan are left out and named in
    ``defects`` where they show damage.

    Raises:
        BadInput: no sweep can be used, or the file is of no known format; says what was expected and found.
    """
    name = name or path.name
    with plain_file(path, options.max_bytes, name) as plain:
        kind, hints = sniff(plain, name)
        try:
            with _readable(plain, kind, name, options) as readable:
                check_sizes(readable.path, kind, name, options.max_bytes)
                with opened(readable.path, kind) as tree:
                    return _volume(tree, kind, name, radar, nominal_time, options, readable)
        except BadInput as err:
            raise BadInput(f"{err} ({hints})") if hints else err from None
        except _OF_LIBRARIES as err:
            pass_machine_fault(err, name)
            also = f"; {hints}" if hints else ""
            raise BadInput(f"{name}: {in_words(err)} (read as {kind}: {first_line(err)}{also})") from err


def _readable(path: Path, kind: str, name: str, options: DecodeOptions) -> AbstractContextManager[Readable]:
    """What xradar is given to read."""
    if kind == "nexrad":
        return whole_part(path, name, options.max_bytes)
    if kind == "odim":
        return needed_part(path, name, options.site is not None, options.rstart_unit)
    if kind == "cfradial1":
        return rectangular(path, name, options.max_bytes)
    if kind == "cfradial2":
        return in_metres(path)
    return nullcontext(Readable(path, announced_sweeps(path) if kind == "iris" else 0))


def _volume(
    tree: Any, kind: str, name: str, radar: str, nominal: datetime, options: DecodeOptions, readable: Readable
) -> Volume:
    root = tree.root.to_dataset()
    sweeps, defects, without = list[Sweep](), list(readable.defects), list(readable.unused)
    keys = sorted((k for k in tree.children if k.startswith("sweep_")), key=lambda k: int(k.rpartition("_")[2]))
    announced = readable.announced
    if announced is None:
        announced = int(tree.root.attrs.get("number_elevation_cuts") or 0)
    if not keys:
        whole = f"none of {announced} sweeps is whole" if announced else "it holds no sweep"
        raise BadInput(f"{name}: {whole}: {'; '.join(defects)[:500] or 'the file is cut off, or empty'}")
    names = dict(zip(keys, readable.names or keys, strict=True))
    for key in _part(keys, tree, name, options):
        try:
            number = int(key.rpartition("_")[2])
            gates = readable.gates[number] if number < len(readable.gates) else 0
            data = tree[key].to_dataset()
            sweep = _sweep(data.isel(range=slice(0, gates)) if gates else data, kind, nominal, options)
        except BadInput as err:
            defects.append(f"{names[key]}{err}")
            continue
        except _OF_LIBRARIES as err:
            pass_machine_fault(err, name)
            defects.append(f"{names[key]} is damaged inside ({first_line(err)})")
            continue
        if isinstance(sweep, str):
            without.append(f"{names[key]}: {sweep}")
        else:
            sweeps.append(sweep)
    if not sweeps:
        why = "; ".join(defects + without) or "it holds no sweep"
        raise BadInput(f"{name}: no sweep with reflectivity can be used: {why[:500]}")
    sweeps, clocks = of_one_scan(filtered_where_both(sweeps))
    if len(keys) < announced:
        defects.append(f"{len(keys)} of {announced} sweeps")
    defects += clocks + _holes(sweeps)
    return Volume(radar, _site(root, name, options), tuple(sweeps), tuple(defects))


def _part(keys: list[str], tree: Any, name: str, options: DecodeOptions) -> list[str]:
    """The sweeps of the scan that is asked for, where several lie in one file."""
    n, of = options.part
    share = keys[n * len(keys) // of : (n + 1) * len(keys) // of]
    if of > 1:
        lowest = [min(_elevation(tree[key]) for key in some) for some in (keys, share or keys[:1])]
        if not share or lowest[1] > lowest[0] + SAME_SCAN:
            raise BadInput(
                f"{name}: expected {of} scans in the file (scans_per_file), found no low sweep in part {n + 1} of its "
                f"{len(keys)} sweeps (lowest {lowest[1]:.1f}, of all {lowest[0]:.1f} degrees)"
            )
    return share


def _elevation(sweep: Any) -> float:
    value = float(np.nanmedian(sweep["elevation"].values))
    return value if value >= -2 else 90.0


def of_one_scan(sweeps: list[Sweep]) -> tuple[list[Sweep], list[str]]:
    """Sweeps whose clock agrees with that of the others, and what is wrong with those left out."""
    middle = sorted(sweep.time for sweep in sweeps)[len(sweeps) // 2]
    good = [sweep for sweep in sweeps if abs(sweep.time - middle) <= LONGEST_SCAN]
    said = f"of {middle:%Y-%m-%dT%H:%M:%SZ}"
    wrong = [
        f"the sweep at {s.elevation:.1f} degrees is of {s.time:%Y-%m-%dT%H:%M:%SZ}, the others {said}"
        for s in sweeps
        if abs(s.time - middle) > LONGEST_SCAN
    ]
    return good, wrong


def without_silent_sweeps(volume: Volume) -> Volume:
    """The volume with sweeps of nothing but one ambiguous code taken for what they are.

    Above a sweep with little echo they are dry. Above one with much, or below any echo, the radar was silent and they
    measured nothing; Montancy's file of 10:30 has four such sweeps right above one that is half full of rain.
    """
    silent, below = [], 1.0
    echo = {s.elevation: float((s.dbz > NO_ECHO_DBZ).mean()) for s in volume.sweeps if not s.blank}
    top = max((elevation for elevation, share in echo.items() if share > SPECKS), default=-90.0)
    for sweep in sorted(volume.sweeps, key=lambda s: s.elevation):
        if not sweep.blank:
            below = echo[sweep.elevation]
        elif sweep.elevation < top or below > LITTLE_ECHO:
            silent.append(sweep)
    if not silent or len(silent) == len(volume.sweeps):
        return volume
    defects = tuple(f"the sweep at {s.elevation:.1f} degrees measured nothing" for s in silent)
    kept = tuple(s for s in volume.sweeps if not any(s is one for one in silent))
    return replace(volume, sweeps=kept, defects=volume.defects + defects)


def _holes(sweeps: list[Sweep]) -> list[str]:
    """Gaps between neighbouring rays of a full turn; a missing chunk leaves one without any error."""
    found = []
    steps = [np.diff(np.append(sweep.azimuth, sweep.azimuth[0] + 360)) for sweep in sweeps]
    # only where every sweep leaves out so much is that the scan
    sector = min(float(gaps.max()) for gaps in steps) >= SECTOR
    for n, (sweep, gaps) in enumerate(zip(sweeps, steps, strict=True)):
        gap = float(gaps.max())
        if gap > max(SMALLEST_HOLE, 3 * float(np.median(gaps))) and not sector:
            found.append(f"sweep {n} ({sweep.elevation:.1f} degrees) has a hole of {gap:.0f} degrees")
    return found


def _site(root: Any, name: str, options: DecodeOptions) -> Site:
    if options.site is not None:
        return options.site
    values = [float(np.ravel(root[key].values)[0]) for key in ("longitude", "latitude", "altitude")]
    if np.isnan(values[2]) and _is_place(values[0], values[1], 0.0):
        raise BadInput(
            f"{name}: the file has no height of the antenna (its altitude is nan, at {values[0]:g}, {values[1]:g}); "
            "give it in the source's sites"
        )
    if not np.isfinite(values).all() or not _is_place(*values):
        raise BadInput(
            f"{name}: the file has no position of the radar (found {values[0]:g}, {values[1]:g}); "
            "give it in the source's sites"
        )
    return Site(*values)


def _is_place(longitude: float, latitude: float, altitude: float) -> bool:
    somewhere = not (longitude == 0 and latitude == 0)
    return somewhere and abs(longitude) <= 360 and abs(latitude) <= 90 and -500 <= altitude <= 9000


def _sweep(data: Any, kind: str, nominal: datetime, options: DecodeOptions) -> Sweep | str:
    """One sweep, or why it is no map of reflectivity.

    Raises:
        BadInput: it is damaged; the text follows its name.
    """
    mode = str(np.ravel(data["sweep_mode"].values)[0]) if "sweep_mode" in data else "azimuth_surveillance"
    elevation = float(np.nanmedian(data["elevation"].values))
    if not np.isfinite(elevation):
        raise BadInput(": its elevation is nan degrees")
    if "rhi" in mode or "vertical" in mode or "sunscan" in mode or not -2 <= elevation <= 60:
        return f"{mode} at {elevation:.1f} degrees"
    moment = reflectivity_moment(data)
    if moment is None:
        moments = [str(name) for name, found in data.data_vars.items() if found.ndim == 2]
        return "no reflectivity moment among " + ", ".join(moments[:10])
    field = data[moment]
    if field.dims != ("azimuth", "range"):
        return f"{moment} has dimensions {field.dims}"
    size = f"{field.shape[0]} rays of {field.shape[1]} gates"
    if field.shape[0] * field.shape[1] > MAX_CELLS:
        raise BadInput(f": {size}, more than {MAX_CELLS} in all")
    if field.shape[0] < _SMALLEST_SWEEP[0] or field.shape[1] < _SMALLEST_SWEEP[1]:
        return size
    azimuth = np.asarray(data["azimuth"].values, np.float32) % 360
    ranges = range_in_metres(data["range"])
    gate = float(np.median(np.diff(ranges)))
    if not (gate > 0 and np.allclose(np.diff(ranges), gate, rtol=0.01)) or not np.isfinite(azimuth).all():
        raise BadInput(f": gates or rays are not regular (spacing {gate:g} m)")
    dbz, blank = decoded(field, kind)
    if HAS_GATE in data:
        dbz[data[HAS_GATE].values != 1] = np.nan
    order = np.argsort(azimuth, kind="stable")
    rho_name = next((m for m in RHOHV if m in data), None)
    rhohv = None
    if rho_name is not None and data[rho_name].shape == field.shape:
        rhohv = correlation(data[rho_name], kind)[order]
    fluctuation = None
    if FLUCTUATION in data and data[FLUCTUATION].attrs.get("units") == "dB" and data[FLUCTUATION].shape == field.shape:
        fluctuation = np.asarray(data[FLUCTUATION].values, np.float32)
    return Sweep(
        elevation=elevation,
        azimuth=azimuth[order],
        range_m=float(ranges[0]),
        gate_m=gate,
        dbz=dbz[order],
        rhohv=rhohv,
        fluctuation=None if fluctuation is None else fluctuation[order],
        filtered=moment not in RAW,
        surveillance=data.attrs.get("waveform_type") == "contiguous_surveillance",
        time=_mean_time(data) if options.reliable_times else nominal,
        blank=blank,
    )


def _mean_time(data: Any) -> datetime:
    seconds = data["time"].values.astype("datetime64[ns]").astype(np.int64)
    valid = seconds[seconds > 0]
    if not len(valid):
        raise BadInput(": the rays have no time")
    return datetime.fromtimestamp(float(valid.mean()) / 1e9, UTC)

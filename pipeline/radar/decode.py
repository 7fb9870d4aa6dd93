"""Volume files of any make become sweeps; xradar reads the formats, this module decodes what it leaves coded.

What each format writes for "no echo" and for "not measured"
differs and is mostly not decoded by xradar (see the functions below); here every format ends with NaN and NO_ECHO_DBZ.
"""

import logging
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from pipeline.errors import BadInput
from pipeline.radar.formats import check_sizes, nexrad_ended, opened, plain_file, sniff
from pipeline.radar.odim import announced_sweeps, checked
from pipeline.radar.volume import NO_ECHO_DBZ, Floats, Site, Sweep, Volume

log = logging.getLogger(__name__)

MAX_CELLS = 4000 * 8000  # of one sweep; a larger one is a damaged header
HIGHEST_DBZ = 80.0  # nothing in the atmosphere is higher; codes for "not scanned" are
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

# names of the reflectivity moment, the most filtered first
FILTERED = (
    "DBZH", "DBZ", "dBZ", "DBZHC", "corrected_reflectivity", "reflectivity", "reflectivity_horizontal", "REF", "Z",
)  # fmt: skip
RAW = ("TH", "DBTH", "dBuZ", "total_power")
RHOHV = ("RHOHV", "uncorrected_cross_correlation_ratio", "cross_correlation_ratio", "copol_correlation_coeff")

# standard deviation of reflectivity from pulse to pulse (Meteo-France)
FLUCTUATION = "SIGMA"


@dataclass(frozen=True)
class DecodeOptions:
    """What the files of a source do not say themselves.

    Attributes:
        site: position of the antenna where the format carries none; None takes that of the file.
        reliable_times: False where ray times are known to be wrong; sweeps then get the nominal time.
        part: (n, of): only the n-th of equal shares of the sweeps, from 0; several scans may lie in one file.
        max_bytes: of the file when decompressed; the largest volumes in use are a tenth of the default.
    """

    site: Site | None = None
    reliable_times: bool = True
    part: tuple[int, int] = (0, 1)
    max_bytes: int = 512 * 2**20


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
        kind = sniff(plain, name)
        try:
            check_sizes(plain, kind, name, options.max_bytes)
            has_site = options.site is not None
            with (
                checked(plain, name, has_site) if kind == "odim" else nullcontext(plain) as sound,
                opened(sound, kind) as tree,
            ):
                announced = _announced(plain, kind, tree)
                return _volume(tree, kind, name, radar, nominal_time, options, announced)
        except BadInput:
            raise
        except OSError as err:
            if err.errno:
                raise  # a full disk, or too many open files: not the file's fault
            raise BadInput(f"{name}: cannot be read as {kind}: {(str(err).splitlines() or [''])[0]}") from err
        except (
            EOFError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            RuntimeError,
            AssertionError,
            AttributeError,
            ArithmeticError,
            struct.error,
            zlib.error,
            ExpatError,
        ) as err:
            first = (str(err).splitlines() or [""])[0]
            raise BadInput(f"{name}: cannot be read as {kind}: {type(err).__name__}: {first}") from err


def _volume(
    tree: Any, kind: str, name: str, radar: str, nominal: datetime, options: DecodeOptions, announced: int
) -> Volume:
    root = tree.root.to_dataset()
    sweeps, defects, without = [], [], []
    keys = sorted((k for k in tree.children if k.startswith("sweep_")), key=lambda k: int(k.rpartition("_")[2]))
    n, of = options.part
    mine = keys[n * len(keys) // of : (n + 1) * len(keys) // of]
    if of > 1:
        lowest = [min(_elevation(tree[key]) for key in some) for some in (keys, mine or keys[:1])]
        if not mine or lowest[1] > lowest[0] + SAME_SCAN:
            raise BadInput(
                f"{name}: expected {of} scans in the file (scans_per_file), found no low sweep in part {n + 1} of its "
                f"{len(keys)} sweeps (lowest {lowest[1]:.1f}, of all {lowest[0]:.1f} degrees)"
            )
    for key in mine:
        try:
            sweep = _sweep(tree[key].to_dataset(), kind, nominal, options)
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            defects.append(f"{key} cannot be read: {(str(err).splitlines() or [''])[0]}")
            continue
        if isinstance(sweep, str):
            without.append(f"{key}: {sweep}")
        else:
            sweeps.append(sweep)
    if not sweeps:
        why = "; ".join(defects + without) or "it holds no sweep"
        raise BadInput(f"{name}: no sweep with reflectivity can be used: {why[:500]}")
    sweeps, clocks = of_one_scan(sweeps)
    if len(keys) < announced:
        defects.append(f"{len(keys)} of {announced} sweeps")
    defects += clocks + _holes(sweeps)
    return Volume(radar, _site(root, name, options), tuple(sweeps), tuple(defects))


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


def _announced(path: Path, kind: str, tree: Any) -> int:
    """How many sweeps there should be; 0 if nothing says so.

    NEXRAD announces all cuts of its strategy; where AVSET left the upper ones out, the last radial ends the volume.
    """
    if kind == "nexrad":
        return 0 if nexrad_ended(path) else int(tree.root.attrs.get("number_elevation_cuts") or 0)
    return announced_sweeps(path) if kind == "odim" else 0


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
        ValueError: it is damaged.
    """
    mode = str(np.ravel(data["sweep_mode"].values)[0]) if "sweep_mode" in data else "azimuth_surveillance"
    elevation = float(np.nanmedian(data["elevation"].values))
    if not np.isfinite(elevation):
        raise ValueError("its elevation is nan degrees")
    if "rhi" in mode or "vertical" in mode or "sunscan" in mode or not -2 <= elevation <= 60:
        return f"{mode} at {elevation:.1f} degrees"
    moment = next((m for m in FILTERED + RAW if m in data), None) or _by_standard_name(data)
    if moment is None:
        moments = [str(name) for name, found in data.data_vars.items() if found.ndim == 2]
        return "no reflectivity moment among " + ", ".join(moments[:10])
    field = data[moment]
    if field.dims != ("azimuth", "range"):
        return f"{moment} has dimensions {field.dims}"
    size = f"{field.shape[0]} rays of {field.shape[1]} gates"
    if field.shape[0] * field.shape[1] > MAX_CELLS:
        raise ValueError(f"{size}, more than {MAX_CELLS} in all")
    if field.shape[0] < _SMALLEST_SWEEP[0] or field.shape[1] < _SMALLEST_SWEEP[1]:
        return size
    azimuth = np.asarray(data["azimuth"].values, np.float32) % 360
    ranges = np.asarray(data["range"].values, np.float64)
    gate = float(np.median(np.diff(ranges)))
    if not (gate > 0 and np.allclose(np.diff(ranges), gate, rtol=0.01)) or not np.isfinite(azimuth).all():
        raise ValueError(f"gates or rays are not regular (spacing {gate:g} m)")
    dbz, blank = _decoded(field, kind)
    order = np.argsort(azimuth, kind="stable")
    rho_name = next((m for m in RHOHV if m in data), None)
    rhohv = None
    if rho_name is not None and data[rho_name].shape == field.shape:
        rhohv = _rhohv(data[rho_name], kind)[order]
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


def _by_standard_name(data: Any) -> str | None:
    """The first variable that calls itself reflectivity."""
    wanted = {
        "equivalent_reflectivity_factor",
        "equivalent_reflectivity_factor_h",
        "radar_equivalent_reflectivity_factor_h",
    }
    return next((str(n) for n, v in data.data_vars.items() if v.attrs.get("standard_name") in wanted), None)


def _decoded(field: Any, kind: str) -> tuple[Floats, bool]:
    """DBZ with NaN where not measured and NO_ECHO_DBZ where no echo.

    - nexrad: code 0 is below the noise (no echo), code 1 is range-folded (not measured).
    - odim: ``undetect`` is no echo, ``nodata`` (NaN) not measured; where both have one code the file cannot tell them
      apart, and inside its range "nothing" is read as no echo.
    - iris: code 0 (-32 dBZ, also written as -327.68) is no echo; rainbow: code 0, the bottom of its scale.
    - gamic, cfradial: one fill value for both, read as no echo; so is the bottom of a packed scale.

    Returns:
        The values, and whether one code means both and the sweep has nothing else: dry, or the radar is silent.
    """
    values = np.asarray(field.values, np.float32)
    missing = np.isnan(values)
    no_echo = values <= NO_ECHO_DBZ
    one_code = kind in {"iris", "rainbow"}
    if kind == "nexrad":
        code = np.rint((values - field.encoding["add_offset"]) / field.encoding["scale_factor"])
        no_echo, missing = code == 0, missing | (code == 1)
    elif kind == "odim" or (kind.startswith("cfradial") and "_Undetect" in field.attrs):
        undetect, nodata = field.attrs.get("_Undetect"), field.encoding.get("_FillValue")
        if undetect is not None:
            scale, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
            no_echo |= np.isclose(values, undetect * scale + offset, atol=abs(scale) / 4)
        if undetect is not None and nodata is not None and undetect == nodata:
            no_echo, missing, one_code = no_echo | missing, np.zeros_like(missing), True
    elif kind in {"gamic", "cfradial1", "cfradial2"}:
        offset = float(field.encoding.get("add_offset") or NO_ECHO_DBZ)
        # only where no code lies below it; a signed packing has its offset in the middle
        bottom = offset if not (values < offset - 1e-3).any() else NO_ECHO_DBZ
        no_echo, missing = no_echo | missing | (values <= min(bottom, 0.0)), np.zeros_like(missing)
        one_code = True
    elif kind == "rainbow":
        step = field.encoding.get("scale_factor", 0.0)
        no_echo |= values <= field.encoding.get("add_offset", NO_ECHO_DBZ) + step / 2
    missing |= values > HIGHEST_DBZ
    out = np.maximum(values, np.float32(NO_ECHO_DBZ))
    out[no_echo] = NO_ECHO_DBZ
    out[missing] = np.nan
    return out, one_code and not (out > NO_ECHO_DBZ).any()


def _rhohv(field: Any, kind: str) -> Floats:
    """Correlation with NaN where unknown; codes 0 and 1 of NEXRAD are no values."""
    values = np.asarray(field.values, np.float32)
    if kind == "nexrad":
        code = np.rint((values - field.encoding.get("add_offset", 0)) / field.encoding.get("scale_factor", 1))
        values = np.where(code <= 1, np.nan, values)
    return np.where((values > 0) & (values <= 1.1), values, np.nan).astype(np.float32)


def _mean_time(data: Any) -> datetime:
    seconds = data["time"].values.astype("datetime64[ns]").astype(np.int64)
    valid = seconds[seconds > 0]
    if not len(valid):
        raise ValueError("the rays have no time")
    return datetime.fromtimestamp(float(valid.mean()) / 1e9, UTC)

"""Volume files of any make become sweeps; xradar reads the formats, this module decodes what it leaves coded.

The format is told by the first bytes, never by the name. What each format writes for "no echo" and for "not measured"
differs and is mostly not decoded by xradar (see the functions below); here every format ends with NaN and NO_ECHO_DBZ.
"""

import bz2
import gzip
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.parsers.expat import ExpatError

import h5py
import numpy as np

from pipeline.errors import BadInput
from pipeline.radar.volume import NO_ECHO_DBZ, Floats, Site, Sweep, Volume

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 2**20  # decompressed; the largest volumes in use are a tenth of it
MAX_CELLS = 4000 * 8000  # of one sweep; a larger one is a damaged header
HIGHEST_DBZ = 80.0  # nothing in the atmosphere is higher; codes for "not scanned" are
_SMALLEST_SWEEP = (10, 10)  # rays and gates; smaller ones point up or are tests
# degrees without a ray: less is jitter of the antenna, more a scan of a sector on purpose
SMALLEST_HOLE, SECTOR = 5.0, 180.0

# names of the reflectivity moment, the most filtered first
FILTERED = ("DBZH", "DBZ", "DBZHC", "corrected_reflectivity", "reflectivity", "reflectivity_horizontal", "REF", "Z")
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
    """

    site: Site | None = None
    reliable_times: bool = True
    part: tuple[int, int] = (0, 1)


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
    with _plain_file(path) as plain:
        kind = sniff(plain, name)
        try:
            with _opened(plain, kind) as tree:
                return _volume(tree, kind, name, radar, nominal_time, options)
        except BadInput:
            raise
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            RuntimeError,
            AssertionError,
            zlib.error,
            ExpatError,
        ) as err:
            first = (str(err).splitlines() or [""])[0]
            raise BadInput(f"{name}: cannot be read as {kind}: {type(err).__name__}: {first}") from err


def header_time(path: Path) -> datetime:
    """Nominal time in the header of an ODIM file, for feeds whose names carry none.

    Raises:
        BadInput: the file is not ODIM or has no such time.
    """
    try:
        with h5py.File(path, "r") as file:
            date, clock = (_text(file["what"].attrs[key]) for key in ("date", "time"))
            return datetime.strptime(date + clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except (OSError, KeyError, ValueError) as err:
        raise BadInput(f"{path.name}: no time in the name, and none in an ODIM header: {err}") from err


def sniff(path: Path, name: str) -> str:
    """Format of an uncompressed file: nexrad, odim, gamic, cfradial1, cfradial2, iris or rainbow.

    Raises:
        BadInput: none of these; says what the file begins with.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise BadInput(f"{name}: the file is empty")
    if start.startswith((b"AR2V", b"ARCHIVE2")):
        return "nexrad"
    if start.startswith(b"\x89HDF"):
        return _sniff_hdf5(path, name)
    if start.startswith((b"CDF\x01", b"CDF\x02")):
        return "cfradial1"
    if start.startswith(b"<volume"):
        return "rainbow"
    if start.startswith(b"\x1b\x00"):
        return "iris"
    raise BadInput(f"{name}: expected a radar volume of a known format, found a file that begins with {start!r}")


def _sniff_hdf5(path: Path, name: str) -> str:
    try:
        with h5py.File(path, "r") as file:
            if "what" in file and "object" in file["what"].attrs:
                kind = _text(file["what"].attrs["object"])
                if kind not in {"PVOL", "SCAN"}:
                    raise BadInput(f"{name}: expected a polar volume (PVOL, SCAN), found the ODIM object {kind!r}")
                return "odim"
            if "scan0" in file:
                return "gamic"
            if "sweep_group_name" in file:
                return "cfradial2"
            if "sweep_start_ray_index" in file:
                return "cfradial1"
            found = ", ".join(list(file)[:12]) or "nothing"
    except OSError as err:
        raise BadInput(f"{name}: a damaged HDF5 file: {(str(err).splitlines() or [''])[0]}") from err
    raise BadInput(f"{name}: expected ODIM_H5, GAMIC or CfRadial, found HDF5 with {found}")


def _text(value: Any) -> str:
    """An HDF5 string attribute, scalar or of length 1."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """The file itself, or its decompressed copy (xradar opens every format by path, but none compressed)."""
    with path.open("rb") as file:
        magic = file.read(3)
    opener: Callable[[Path], Any] | None = None
    if magic[:2] == b"\x1f\x8b":
        opener = gzip.open
    elif magic == b"BZh":
        opener = bz2.open
    if opener is None:
        yield path
        return
    with TemporaryDirectory(prefix="volume-") as folder:
        plain = Path(folder) / "volume"
        size = 0
        try:
            with opener(path) as source, plain.open("wb") as target:
                while block := source.read(2**20):
                    size += len(block)
                    if size > MAX_BYTES:
                        raise BadInput(f"{path.name}: more than {MAX_BYTES} bytes when decompressed")
                    target.write(block)
        except (OSError, EOFError, zlib.error) as err:
            if getattr(err, "errno", None):
                raise  # a full disk or a read error is not the file's fault
            raise BadInput(f"{path.name}: damaged compression: {err}") from err
        yield plain


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    import warnings

    import xradar as xd

    openers: dict[str, Callable[[str], Any]] = {
        "nexrad": xd.io.open_nexradlevel2_datatree,
        "odim": xd.io.open_odim_datatree,
        "gamic": xd.io.open_gamic_datatree,
        "cfradial1": lambda p: xd.io.open_cfradial1_datatree(p, engine=_netcdf_engine(path)),
        "cfradial2": lambda p: xd.io.open_cfradial2_datatree(p, engine="h5netcdf"),
        "iris": xd.io.open_iris_datatree,
        "rainbow": xd.io.open_rainbow_datatree,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attributes that we do not use
        tree = openers[kind](str(path))
        try:
            yield tree
        finally:
            tree.close()


def _netcdf_engine(path: Path) -> str:
    with path.open("rb") as file:
        return "h5netcdf" if file.read(4) == b"\x89HDF" else "scipy"


def _volume(tree: Any, kind: str, name: str, radar: str, nominal: datetime, options: DecodeOptions) -> Volume:
    root = tree.root.to_dataset()
    sweeps, defects, without = [], [], []
    keys = sorted((k for k in tree.children if k.startswith("sweep_")), key=lambda k: int(k.rpartition("_")[2]))
    n, of = options.part
    for key in keys[n * len(keys) // of : (n + 1) * len(keys) // of]:
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
    defects += _announced(root, len(keys)) + _holes(sweeps)
    return Volume(radar, _site(root, name, options), tuple(sweeps), tuple(defects))


def _announced(root: Any, found: int) -> list[str]:
    """NEXRAD announces its cuts. Fewer are the work of AVSET (high cuts without echo) or of a file that was cut off."""
    announced = int(root.attrs.get("number_elevation_cuts") or 0)
    return [f"{found} of {announced} sweeps"] if found < announced else []


def _holes(sweeps: list[Sweep]) -> list[str]:
    """Gaps between neighbouring rays of a full turn; a missing chunk leaves one without any error."""
    found = []
    for n, sweep in enumerate(sweeps):
        gaps = np.diff(np.append(sweep.azimuth, sweep.azimuth[0] + 360))
        gap = float(gaps.max())
        if max(SMALLEST_HOLE, 3 * float(np.median(gaps))) < gap < SECTOR:
            found.append(f"sweep {n} ({sweep.elevation:.1f} degrees) has a hole of {gap:.0f} degrees")
    return found


def _site(root: Any, name: str, options: DecodeOptions) -> Site:
    if options.site is not None:
        return options.site
    values = [float(np.ravel(root[key].values)[0]) for key in ("longitude", "latitude", "altitude")]
    if not np.isfinite(values).all() or (values[0] == 0 and values[1] == 0) or abs(values[1]) > 90:
        raise BadInput(
            f"{name}: the file has no position of the radar (found {values[0]:g}, {values[1]:g}); "
            "give it in the source's sites"
        )
    return Site(*values)


def _sweep(data: Any, kind: str, nominal: datetime, options: DecodeOptions) -> Sweep | str:
    """One sweep, or why it is of no use."""
    mode = str(np.ravel(data["sweep_mode"].values)[0]) if "sweep_mode" in data else "azimuth_surveillance"
    elevation = float(np.nanmedian(data["elevation"].values))
    if "rhi" in mode or "vertical" in mode or "sunscan" in mode or not -2 <= elevation <= 60:
        return f"{mode} at {elevation:.1f} degrees"
    moment = next((m for m in FILTERED + RAW if m in data), None) or _by_standard_name(data)
    if moment is None:
        return "no reflectivity moment among " + ", ".join(map(str, list(data.data_vars)[:10]))
    field = data[moment]
    if field.dims != ("azimuth", "range"):
        return f"{moment} has dimensions {field.dims}"
    if min(field.shape) < min(_SMALLEST_SWEEP) or field.shape[0] * field.shape[1] > MAX_CELLS:
        return f"{field.shape[0]} rays of {field.shape[1]} gates"
    azimuth = np.asarray(data["azimuth"].values, np.float32) % 360
    ranges = np.asarray(data["range"].values, np.float64)
    gate = float(np.median(np.diff(ranges)))
    if not (gate > 0 and np.allclose(np.diff(ranges), gate, rtol=0.01)) or not np.isfinite(azimuth).all():
        return f"gates or rays are not regular (spacing {gate:g} m)"
    dbz = _decoded(field, kind)
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
    )


def _by_standard_name(data: Any) -> str | None:
    """The first variable that calls itself reflectivity."""
    wanted = {
        "equivalent_reflectivity_factor",
        "equivalent_reflectivity_factor_h",
        "radar_equivalent_reflectivity_factor_h",
    }
    return next((str(n) for n, v in data.data_vars.items() if v.attrs.get("standard_name") in wanted), None)


def _decoded(field: Any, kind: str) -> Floats:
    """DBZ with NaN where not measured and NO_ECHO_DBZ where no echo.

    - nexrad: code 0 is below the noise (no echo), code 1 is range-folded (not measured).
    - odim: ``undetect`` is no echo, ``nodata`` (NaN) not measured; where both have one code the file cannot tell them
      apart, and inside its range "nothing" is read as no echo.
    - iris, rainbow: code 0 (-32 dBZ, also written as -327.68) is no echo.
    - gamic, cfradial: one fill value for both, read as no echo; so is the bottom of a packed scale.

    Where one code means both, a sweep of nothing else is taken for silent: nothing was measured.
    """
    values = np.asarray(field.values, np.float32)
    missing = np.isnan(values)
    no_echo = values <= NO_ECHO_DBZ
    if kind == "nexrad":
        code = np.rint((values - field.encoding["add_offset"]) / field.encoding["scale_factor"])
        no_echo, missing = code == 0, missing | (code == 1)
    elif kind == "odim":
        undetect, nodata = field.attrs.get("_Undetect"), field.encoding.get("_FillValue")
        if undetect is not None:
            scale, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
            no_echo |= np.isclose(values, undetect * scale + offset, atol=abs(scale) / 4)
        if undetect is not None and nodata is not None and undetect == nodata:
            no_echo, missing = no_echo | missing, np.zeros_like(missing)
    elif kind in {"gamic", "cfradial1", "cfradial2"}:
        offset = float(field.encoding.get("add_offset") or NO_ECHO_DBZ)
        # only where no code lies below it; a signed packing has its offset in the middle
        bottom = offset if not (values < offset - 1e-3).any() else NO_ECHO_DBZ
        no_echo, missing = no_echo | missing | (values <= min(bottom, 0.0)), np.zeros_like(missing)
    missing |= values > HIGHEST_DBZ
    out = np.maximum(values, np.float32(NO_ECHO_DBZ))
    out[no_echo] = NO_ECHO_DBZ
    out[missing] = np.nan
    silent = not (out > NO_ECHO_DBZ).any() and bool(np.isnan(values).all())
    return np.full_like(out, np.nan) if silent else out


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

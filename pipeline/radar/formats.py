"""Files of radar volumes: which format, decompressed where needed, opened by xradar."""

import bz2
import gzip
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import h5py

from pipeline.errors import BadInput

log = logging.getLogger(__name__)

# of a NEXRAD volume (interface control document 2620010), bytes
NEXRAD_HEADER, MESSAGE_HEADER, FIXED_MESSAGE = 24, 28, 2432
END_OF_VOLUME = 4


def header_time(path: Path) -> datetime:
    """Nominal time in the header of an ODIM file, for feeds whose names carry none.

    Raises:
        BadInput: the file is not ODIM or has no such time.
    """
    try:
        with h5py.File(path, "r") as file:
            date, clock = (text(file["what"].attrs[key]) for key in ("date", "time"))
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
                kind = text(file["what"].attrs["object"])
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


def text(value: Any) -> str:
    """An HDF5 string attribute, scalar or of length 1."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def plain_file(path: Path, max_bytes: int, name: str = "") -> Iterator[Path]:
    """The file itself, or its decompressed copy (xradar opens every format by path, but none compressed).

    Raises:
        BadInput: the compression is damaged, or more than ``max_bytes`` come out of it.
    """
    name = name or path.name
    with path.open("rb") as file:
        magic = file.read(28)
    unpack: Callable[[Path, BinaryIO, _Budget], None] | None = None
    if magic.startswith(b"\x1f\x8b"):
        unpack = partial(_copy, opener=gzip.open)
    elif magic.startswith(b"BZh"):
        unpack = partial(_copy, opener=bz2.open)
    elif magic.startswith(b"AR2V") and magic[28 - 4 :] != bytes(4):
        unpack = _unpack_records
    if unpack is None:
        yield path
        return
    with TemporaryDirectory(prefix="volume-") as folder:
        plain = Path(folder) / "volume"
        try:
            with plain.open("wb") as target:
                unpack(path, target, _Budget(name, max_bytes))
        except (OSError, EOFError, zlib.error) as err:
            if getattr(err, "errno", None):
                raise  # a full disk or a read error is not the file's fault
            raise BadInput(f"{name}: damaged compression: {err}") from err
        with plain_file(plain, max_bytes, name) if unpack is not _unpack_records else nullcontext(plain) as inner:
            yield inner


class _Budget:
    """What may still come out of a file."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name, self.max_bytes, self.left = name, max_bytes, max_bytes

    def spend(self, size: int) -> None:
        """Raise BadInput if it is too much."""
        self.left -= size
        if self.left < 0:
            raise BadInput(f"{self.name}: more than {self.max_bytes} bytes when decompressed")


def _copy(path: Path, target: BinaryIO, budget: _Budget, opener: Callable[[Path], Any]) -> None:
    with opener(path) as source:
        while block := source.read(2**20):
            budget.spend(len(block))
            target.write(block)


def _unpack_records(path: Path, target: BinaryIO, budget: _Budget) -> None:
    """NEXRAD's bzip2 records in their order (twice as fast as xradar does it, and within bounds)."""
    with path.open("rb") as source:
        target.write(source.read(NEXRAD_HEADER))
        while len(size := source.read(4)) == 4:
            record = source.read(abs(struct.unpack(">i", size)[0]))
            if not record.startswith(b"BZh"):
                target.write(size + record + source.read())
                return
            try:
                inflate(bz2.BZ2Decompressor(), record, budget, target)
            except OSError as err:
                if err.errno:
                    raise
                # its radials are lost, which shows as a hole
                log.warning("%s: a damaged record is left out: %s", budget.name, err)


def inflate(tool: Any, data: bytes, budget: _Budget, target: BinaryIO | None = None) -> None:
    """Decompress in small steps, so that no bomb fills the memory; what is cut off gives what there is."""
    while not tool.eof:
        part = tool.decompress(data, 2**20)
        budget.spend(len(part))
        if target is not None:
            target.write(part)
        data = getattr(tool, "unconsumed_tail", b"")
        if not part and not data:
            return


def whole_records(chunk: bytes) -> bytes:
    """A piece of a NEXRAD volume without the record that was cut off at its end, so that the next piece can follow."""
    position = NEXRAD_HEADER if chunk.startswith((b"AR2V", b"ARCHIVE2")) else 0
    if chunk[position + 4 : position + 7] != b"BZh":
        return chunk
    while position + 4 <= len(chunk):
        following = position + 4 + abs(struct.unpack_from(">i", chunk, position)[0])
        if following > len(chunk):
            break
        position = following
    return chunk[:position]


def check_sizes(path: Path, kind: str, name: str, max_bytes: int) -> None:
    """What a file says it holds, before anything of it is read.

    Raises:
        BadInput: it is more than ``max_bytes``.
    """
    if kind == "rainbow":
        data, budget = path.read_bytes(), _Budget(name, max_bytes)
        for blob in re.finditer(rb'<BLOB blobid="\d+" size="(\d{1,12})" compression="qt">\n', data):
            inflate(zlib.decompressobj(), data[blob.end() + 4 : blob.end() + int(blob[1])], budget)
        return
    with path.open("rb") as file:
        if file.read(4) != b"\x89HDF":
            return
    sizes: list[tuple[int, str, tuple[int, ...]]] = []

    def add(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append((item.size * item.dtype.itemsize, key, item.shape))

    with h5py.File(path, "r") as hdf:
        hdf.visititems(add)
    total = sum(size for size, _, _ in sizes)
    if total > max_bytes:
        _, key, shape = max(sizes)
        raise BadInput(f"{name}: {total} bytes when decompressed, the largest {key} {shape}; more than {max_bytes}")


def nexrad_ended(path: Path) -> bool:
    """Whether the last radial of an unpacked NEXRAD volume says that it is the last: then nothing was cut off."""
    data, position, status = path.read_bytes(), NEXRAD_HEADER, None
    while position + MESSAGE_HEADER <= len(data):
        halfwords, _, kind = struct.unpack_from(">HBB", data, position + 12)
        if kind == 31 and position + MESSAGE_HEADER + 22 <= len(data):
            status = data[position + MESSAGE_HEADER + 21]
        position += 12 + 2 * halfwords if kind == 31 else FIXED_MESSAGE
    return status == END_OF_VOLUME


@contextmanager
def opened(path: Path, kind: str) -> Iterator[Any]:
    """The file as xradar's tree of sweeps."""
    import xradar as xd

    openers: dict[str, Callable[[Any], Any]] = {
        "nexrad": xd.io.open_nexradlevel2_datatree,
        "odim": xd.io.open_odim_datatree,
        "gamic": xd.io.open_gamic_datatree,
        "cfradial1": lambda p: xd.io.open_cfradial1_datatree(p, engine=_netcdf_engine(path)),
        "cfradial2": lambda p: xd.io.open_cfradial2_datatree(p, engine="h5netcdf", first_dim="auto"),
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
            _close_hdf5(path)


def _close_hdf5(path: Path) -> None:
    """Close what xradar leaves open: HDF5 would show the old bytes of a file that was replaced."""
    for file in h5py.h5f.get_obj_ids(types=h5py.h5f.OBJ_FILE):
        if h5py.h5f.get_name(file) == os.fsencode(path):
            h5py.File(file).close()


def _netcdf_engine(path: Path) -> str:
    with path.open("rb") as file:
        return "h5netcdf" if file.read(4) == b"\x89HDF" else "scipy"

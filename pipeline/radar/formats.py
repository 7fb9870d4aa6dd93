"""Files of radar volumes: decompressed where needed, checked for their sizes, opened by xradar."""

import bz2
import logging
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import h5py

from pipeline.errors import BadInput, machine_fault
from pipeline.radar.iris import mended_reader

log = logging.getLogger(__name__)

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Readable:
    """A file as xradar can open it: the file itself, or a copy of what is needed of it.

    Attributes:
        announced: how many sweeps there should be; 0 if nothing says so, None if only the scan strategy does.
        defects: what was left out because it is damaged, or the radar says that it is of no use.
        unused: what was left out because it is no map of reflectivity.
        names: what the file calls the sweeps; empty if nothing.
        gates: of reflectivity, by the number of the sweep; what is filled up behind them was not measured. 0 or none:
            all of them.
    """

    path: Path
    announced: int | None = 0
    defects: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    gates: tuple[int, ...] = ()


def pass_machine_fault(err: BaseException, name: str) -> None:
    """Raise OSError if it was the machine that failed, or the file is gone: that says nothing about the data."""
    if isinstance(err, FileNotFoundError):
        raise err
    if fault := machine_fault(err):
        raise OSError(f"{name} cannot be read now: {fault}") from err


def first_line(err: BaseException) -> str:
    """What a library says, in a line."""
    return (str(err).splitlines() or [""])[0] or type(err).__name__


def in_words(err: BaseException) -> str:
    """What is wrong with a file that a library cannot read, in the words of whoever sent it."""
    said = str(err)
    if cut := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", said):
        return f"the file is cut off: {cut[1]} of {cut[2]} bytes are there"
    if block := re.search(r"Blob ID (\d+) not found", said):
        return f"the file is cut off or damaged: block {block[1]} of its data is missing"
    if isinstance(err, EOFError) or re.search(_CUT_OFF, said):
        return "the file is cut off"
    if re.search(_NO_SWEEP, said):
        return "it holds no whole sweep: it is cut off, or empty"
    return "the file is damaged inside"


_CUT_OFF = "file end|requires a buffer|mmap length|buffer is (too small|smaller)|end of file|cannot reshape"
_NO_SWEEP = "out of bounds for axis|at least one object|empty sequence|zero-size array|need at least one array"


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
        magic = file.read(4)
    unpack: Callable[[Path, BinaryIO, Budget], None] | None = None
    if magic.startswith(GZIP):
        unpack = _unpack_gzip
    elif magic.startswith(b"BZh"):
        unpack = _unpack_bz2
    if unpack is None:
        yield path
        return
    with TemporaryDirectory(prefix="volume-") as folder:
        plain = Path(folder) / "volume"
        try:
            with plain.open("wb") as target:
                unpack(path, target, Budget(name, max_bytes))
        except (OSError, EOFError, zlib.error) as err:
            pass_machine_fault(err, name)  # a full disk or a read error is not the file's fault
            raise BadInput(f"{name}: the file is cut off or damaged: its compression says {first_line(err)}") from err
        with plain_file(plain, max_bytes, name) as inner:
            yield inner


class Budget:
    """What may still come out of a file."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name, self.max_bytes, self.left = name, max_bytes, max_bytes

    def spend(self, size: int) -> None:
        """Raise BadInput if it is too much."""
        self.left -= size
        if self.left < 0:
            raise BadInput(f"{self.name}: more than {self.max_bytes} bytes when decompressed")


def _unpack_bz2(path: Path, target: BinaryIO, budget: Budget) -> None:
    with bz2.open(path) as source:
        while block := source.read(2**20):
            budget.spend(len(block))
            target.write(block)


def _unpack_gzip(path: Path, target: BinaryIO, budget: Budget) -> None:
    """All members of the file; what stands behind the last one is left out, and costs nothing."""
    data = path.read_bytes()
    while data.startswith(GZIP):
        tool = zlib.decompressobj(wbits=31)
        inflate(tool, data, budget, target)
        if not tool.eof:
            raise EOFError("it ended before its end was marked")
        data = tool.unused_data
    if data.strip(b"\0"):
        log.warning("%s: %d bytes behind the end of its compression are left out", budget.name, len(data))


def inflate(tool: Any, data: bytes, budget: Budget, target: BinaryIO | None = None) -> None:
    """Decompress in small steps, so that no bomb fills the memory; what is cut off gives what there is."""
    while not tool.eof:
        part = tool.decompress(data, 2**20)
        budget.spend(len(part))
        if target is not None:
            target.write(part)
        data = getattr(tool, "unconsumed_tail", b"")
        if not part and not data:
            return


def check_sizes(path: Path, kind: str, name: str, max_bytes: int) -> None:
    """What a file says it holds, before anything of it is read.

    Raises:
        BadInput: it is more than ``max_bytes``.
    """
    if kind == "rainbow":
        data, budget = path.read_bytes(), Budget(name, max_bytes)
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


@contextmanager
def opened(path: Path, kind: str) -> Iterator[Any]:
    """The file as xradar's tree of sweeps."""
    import xradar as xd

    openers: dict[str, Callable[[Any], Any]] = {
        "nexrad": xd.io.open_nexradlevel2_datatree,
        "odim": xd.io.open_odim_datatree,
        "gamic": xd.io.open_gamic_datatree,
        "cfradial1": lambda p: xd.io.open_cfradial1_datatree(p, engine=netcdf_engine(path)),
        "cfradial2": lambda p: xd.io.open_cfradial2_datatree(p, engine="h5netcdf", first_dim="auto"),
        "iris": xd.io.open_iris_datatree,
        "rainbow": xd.io.open_rainbow_datatree,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attributes that we do not use
        with mended_reader() if kind == "iris" else nullcontext():
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


def netcdf_engine(path: Path) -> str:
    """With what xarray opens a netCDF file: the classic kind is none of HDF5."""
    with path.open("rb") as file:
        return "h5netcdf" if file.read(4) == b"\x89HDF" else "scipy"

"""What a reader of gridded composites provides, and the checks that they share."""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import h5py

from pipeline.errors import BadInput, machine_fault
from pipeline.sources.contract import RainField

# how h5py says that a group or an attribute is absent
_ABSENT = re.compile(r"(?:object|can't locate attribute:?) '([^']+)'(?: doesn't exist)?\)?$")
SharedCode = Literal["refuse", "dry", "no_data"]
MAX_CELLS = 120_000_000  # a composite of the whole globe at 4 km; anything larger is a damaged header


@dataclass(frozen=True)
class Reading:
    """How to read what a format leaves open; the settings of ``source_settings.GriddedSource``.

    Attributes:
        quantity: of several in a feed or a file, as ODIM names it; empty takes the first in the reader's order.
        dataset: group of the file that holds the field; empty takes the first that has the quantity.
        shared_code: what a cell is where no echo and no data have one code, or where NaN may stand for both.
    """

    quantity: str = ""
    dataset: str = ""
    shared_code: SharedCode = "refuse"


@dataclass(frozen=True)
class Reader:
    """One format.

    Attributes:
        pattern: matches a whole file name; its group ``time`` carries the valid time.
        time_format: strptime format of that group.
        read: decodes a file.
        quantities: those that files of this format may hold, the preferred one first; empty if it has only one.
    """

    pattern: re.Pattern[str]
    time_format: str
    read: Callable[[Path, Reading], RainField]
    quantities: tuple[str, ...] = ()

    def time_of(self, name: str) -> datetime | None:
        """Valid time that a file name promises; None if the name is not of this format."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        try:
            return datetime.strptime(match.group("time"), self.time_format).replace(tzinfo=UTC)
        except ValueError:
            return None


@contextmanager
def decoding(path: Path, meant: str) -> Iterator[None]:
    """An error of a library inside becomes ``BadInput`` in the user's terms, or ``OSError`` if the machine is at fault.

    Args:
        meant: what the file should be, for example "a whole GIF".
    """
    try:
        yield
    except BadInput:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, EOFError, SyntaxError) as err:
        raise_machine_fault(path, err)
        raise BadInput(
            f"{path.name}: not {meant}: damaged, cut off or foreign (the library says: {_first_line(err)})"
        ) from err


def raise_machine_fault(path: Path, err: Exception) -> None:
    """Raise ``OSError`` if an error tells of the machine and not of the file, which is then worth another try."""
    if fault := machine_fault(err):
        raise OSError(f"{path.name}: {fault}") from err


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, turning the library's errors into ``BadInput``.

    Raises:
        OSError: the machine cannot read it.
    """
    with decoding(path, f"a whole HDF5 file of {path.stat().st_size} bytes"), h5py.File(path, "r") as file:
        try:
            yield file
        except KeyError as err:
            raise_machine_fault(path, err)
            if not (lacking := _lacking(err)):
                raise
            top = ", ".join(list(file)[:12]) or "nothing"
            raise BadInput(
                f"{path.name}: not what this reader expects: it lacks {lacking!r}; at the top the file has {top}"
            ) from err


def unzipped(path: Path) -> bytes:
    """Bytes of a file, decompressed if they begin like gzip, never more than a composite can hold.

    Raises:
        BadInput: not a whole gzip file.
        OSError: the machine cannot read it.
    """
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"\x1f\x8b":
        with path.open("rb") as file:
            return file.read(MAX_CELLS)
    try:
        with gzip.open(path, "rb") as file:
            return file.read(MAX_CELLS)
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise_machine_fault(path, err)
        raise BadInput(f"{path.name}: not a whole gzip file: damaged or cut off (the library says: {err})") from err


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a 2-D array of bounded size, checked before it is read."""
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > MAX_CELLS:
        raise BadInput(f"{path.name}: expected a 2-D field of at most {MAX_CELLS} cells, found shape {shape}")
    return shape[0], shape[1]


def text(value: Any) -> str:
    """An HDF5 string attribute, scalar or of length 1."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def number(value: Any) -> float:
    """An HDF5 number attribute, scalar or of length 1."""
    return float(value.item() if hasattr(value, "item") else value)


def _lacking(err: KeyError) -> str:
    """Name of the group or attribute that a file lacks; empty if the error tells of damage."""
    words = str(err.args[0]) if err.args else ""
    match = _ABSENT.search(words)
    return match[1] if match else words if " " not in words else ""


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]

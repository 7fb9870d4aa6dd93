"""What a reader of gridded composites provides, and the checks that they share."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py

from pipeline.errors import BadInput
from pipeline.sources.contract import RainField

MAX_CELLS = 120_000_000  # a composite of the whole globe at 4 km; anything larger is a damaged header


@dataclass(frozen=True)
class Reader:
    """One format.

    Attributes:
        pattern: matches a whole file name; its group ``time`` carries the valid time.
        time_format: strptime format of that group.
        read: decodes a file.
    """

    pattern: re.Pattern[str]
    time_format: str
    read: Callable[[Path], RainField]

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
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, turning the library's errors into ``BadInput``."""
    try:
        with h5py.File(path, "r") as file:
            try:
                yield file
            except KeyError as err:
                found = ", ".join(list(file)[:12]) or "nothing"
                raise BadInput(
                    f"{path.name}: not what this reader expects: {_first_line(err)}; at the top the file has {found}"
                ) from err
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as err:
        raise BadInput(f"{path.name}: not the HDF5 file expected: {_first_line(err)}") from err


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a 2-D array of bounded size, checked before it is read."""
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > MAX_CELLS:
        raise BadInput(f"{path.name}: expected a 2-D field of at most {MAX_CELLS} cells, found shape {shape}")
    return shape[0], shape[1]


def text(value: Any) -> str:
    """An HDF5 string attribute, scalar or of length 1."""
    value = value.item() if hasattr(value, "item") else value
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def number(value: Any) -> float:
    """An HDF5 number attribute, scalar or of length 1."""
    return float(value.item() if hasattr(value, "item") else value)


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]

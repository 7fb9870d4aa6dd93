"""What a source is: it lists what was received, fetches one item and decodes it into a field."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.grids import Grid
from pipeline.radar.volume import Volume

log = logging.getLogger(__name__)

Quantity = Literal["rain_rate", "reflectivity"]


class FileInfo(NamedTuple):
    """A file as its listing shows it.

    Attributes:
        key: unique within the source.
        below: the part of the key below the folder that was listed; names and patterns are compared with it.
        radar: as the folder says; empty if it says nothing.
        size: bytes.
        stamp: changes when the bytes change.
        arrived_at: when it became available.
    """

    key: str
    below: str
    radar: str
    size: int
    stamp: str
    arrived_at: datetime


class Files(Protocol):
    """Where the files of a source lie; ``place`` names it to people."""

    place: str

    def list(self, start: datetime, end: datetime) -> Iterator[FileInfo]:
        """Files that may belong to [start, end]; others may be among them.

        Raises:
            StoreUnavailable: the place cannot be read.
        """
        ...

    def fetch(self, keys: Sequence[str], stamps: Sequence[str], folder: Path, max_bytes: int) -> Sequence[Path]:
        """Local files with the bytes of ``keys``: the originals, or copies in the empty ``folder``.

        Raises:
            BadInput: one has more than ``max_bytes``.
            OSError: one is gone, was replaced since it was listed, or could not be read whole; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        ...


@dataclass(frozen=True)
class VolumeRef:
    """One received item, known from its listing alone.

    Attributes:
        key: unique name within the source.
        nominal_time: valid time that the name promises.
        size: bytes.
        etag: changes when the bytes change.
        arrived_at: when the item became available here.
        radar: name of the radar that measured it; empty for a composite.
        members: keys of the files that make it up, in order; empty if it is made and not received.
        stamps: of the members, as they were listed.
        part: which of several scans in one file, from 0.
        open_until: pieces of it may still come before this time; None if it comes whole.
        lacks: what it has less than others of its kind; empty if nothing.
    """

    key: str
    nominal_time: datetime
    size: int
    etag: str
    arrived_at: datetime
    radar: str = ""
    members: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    part: int = 0
    open_until: datetime | None = None
    lacks: str = ""


@dataclass(frozen=True)
class RainField:
    """One decoded field on its native grid.

    Attributes:
        values: (rows, columns) float32, row 0 north; NaN where not observed, and only there.
        quantity: ``rain_rate`` in mm/h (dry is 0) or ``reflectivity`` in dBZ (no echo is -32 or lower).
        grid: native grid.
        valid_time: what the content says.
        smallest_rate_mm_h: the smallest rain rate that the source can tell from none.
        interval_s: the values are means over this many seconds that end at ``valid_time``; 0 is instantaneous.
        removed: (rows, columns) cells without a value because quality control took it out; None if there are none.
        parameter: which of the quantities that the format knows was read, as it calls it (DBZH, RATE); empty if it
            knows only one.
    """

    values: NDArray[np.float32]
    quantity: Quantity
    grid: Grid
    valid_time: datetime
    smallest_rate_mm_h: float
    interval_s: float = 0.0
    removed: NDArray[np.bool_] | None = None
    parameter: str = ""


class PolarFeed(Protocol):
    """A place where polar volumes come from."""

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
        """Volumes with a nominal time in [start, end], ordered by time, then key.

        Args:
            warn: is told what keeps the source from giving anything, for example that none of its names fits.

        Raises:
            StoreUnavailable: the place cannot be read.
        """
        ...

    def read(self, ref: VolumeRef, scratch: Path) -> Volume:
        """Decode one volume; ``scratch`` is an empty folder for what must be joined or made first.

        Raises:
            BadInput: nothing of it can be used.
            OSError: it could not be read; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        ...

    def files(self, ref: VolumeRef, scratch: Path) -> Sequence[Path]:
        """Files of a volume that the quarantine should keep, or copies in ``scratch``; not what cannot be had.

        Raises:
            OSError: one could not be read; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        ...


class Source(Protocol):
    """A place where volumes or composites come from."""

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
        """Items with a nominal time in [start, end], ordered by time, then key.

        Args:
            warn: is told what keeps the source from giving anything, for example that none of its names fits.

        Raises:
            StoreUnavailable: the place cannot be read.
        """
        ...

    def fetch(self, ref: VolumeRef, folder: Path) -> Path:
        """A local file with the item's bytes: the original, or a copy in ``folder``.

        Raises:
            BadInput: the item is larger than allowed.
            OSError: it could not be read; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        ...

    def decode(self, path: Path) -> RainField:
        """Decode one fetched item.

        Raises:
            BadInput: names what was expected and what was found.
            OtherQuantity: it holds something else than is taken in.
            OSError: the machine cannot read it; worth another try.
        """
        ...

"""Training data on disk: per domain frames, where they were observed, how they moved, and which may be learnt from.

Written by ``nowcast dataset build``; read here, where torch and numpy are enough, on any machine. A folder holds
``card.json`` and, for each series, ``NAME.pixels.npy`` and further arrays; pixels stay on disk, memory-mapped.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.faults import is_of_machine

FORMAT_VERSION = 1
MAX_CARD_BYTES = 2**20
MOTION_CELLS = 8  # side of a cell of the stored motion, in cells of the frames
NOWHERE, LEARN, VALIDATE = 0, 1, 2
# name of an array: its type and dimensions
_ARRAYS = {
    "pixels": (np.uint8, 3),
    "masks": (np.uint8, 3),
    "mask_of": (np.int64, 1),
    "motion": (np.float16, 4),
    "slots": (np.int64, 1),
    "part": (np.uint8, 1),
    "train": (np.int64, 1),
    "validation": (np.int64, 1),
    "weights": (np.float32, 1),
}


@dataclass(frozen=True)
class SeriesFacts:
    """What is known of a series beside its arrays.

    Attributes:
        cadence_minutes, spacing_m: of the frames; every series has its own.
        a, b: of its Z-R relation, Z = a R^b.
        dbz_min, dbz_max: of pixels 0 and 255.
        about: where it comes from, its terms, period and filters; free text and numbers for the card.
    """

    cadence_minutes: int
    spacing_m: float
    a: float
    b: float
    dbz_min: float
    dbz_max: float
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """Frames of one domain.

    Attributes:
        pixels: (time, height, width) uint8, oldest first; 0 where nothing was observed.
        masks: (mask, height, ceil(width / 8)) uint8, the different sets of observed cells, as bits.
        mask_of: (time,) which of them.
        motion: (time, 2, rows, columns) float16, cells a frame, of the four frames that end there, by cells of
            ``MOTION_CELLS``; 0 where there are not so many.
        slots: (time,) number on the time axis; where it jumps, frames are missing.
        part: (time,) ``LEARN``, ``VALIDATE`` or, between the two, ``NOWHERE``.
        train, validation: reference times (numbers of frames) to learn from, and to validate with.
        weights: (time,) of each frame in sampling: wet ones are drawn more often.
    """

    facts: SeriesFacts
    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    mask_of: NDArray[np.int64]
    motion: NDArray[np.float16]
    slots: NDArray[np.int64]
    part: NDArray[np.uint8]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    weights: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def observed(self, time: int) -> NDArray[np.bool_]:
        """(height, width) of a frame."""
        return np.unpackbits(self.masks[self.mask_of[time]], axis=-1, count=self.shape[1]).astype(bool)

    def together(self, time: int, other: int) -> bool:
        """Whether two frames are in one part of the data, with none missing between them."""
        if not 0 <= other < len(self.pixels):
            return False
        first, last = sorted((time, other))
        same = (self.part[first : last + 1] == self.part[time]).all() and self.part[time] != NOWHERE
        return bool(same and self.slots[last] - self.slots[first] == last - first)


def packed_masks(observed: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``masks`` and ``mask_of`` of (time, height, width) observed cells."""
    bits = np.packbits(observed, axis=-1)
    found: dict[bytes, int] = {}
    number = np.array([found.setdefault(one.tobytes(), len(found)) for one in bits], np.int64)
    first = [int(np.flatnonzero(number == n)[0]) for n in range(len(found))]
    return bits[first], number


def save(folder: Path, series: dict[str, Series], card: dict[str, Any]) -> None:
    """Write a dataset; the card comes last, so that one that was cut off is none.

    Raises:
        FileExistsError: the folder exists.
    """
    folder.mkdir(parents=True)
    for name, one in series.items():
        for key in _ARRAYS:
            np.save(folder / f"{name}.{key}.npy", getattr(one, key))
    listed = {name: asdict(one.facts) for name, one in series.items()}
    content = {"format_version": FORMAT_VERSION, **card, "series": listed}
    (folder / "card.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[dict[str, Series], dict[str, Any]]:
    """The series by name, and the card.

    Raises:
        ValueError: names the file that is absent or not what it should be.
    """
    path = folder / "card.json"
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ValueError(f"more than {MAX_CARD_BYTES} bytes")
        card = json.loads(path.read_text(encoding="utf-8"))
        version, listed = card["format_version"], dict(card["series"])
        facts = {name: SeriesFacts(**of) for name, of in listed.items()}
    except (OSError, ValueError, KeyError, TypeError) as err:
        if is_of_machine(err):
            raise
        raise ValueError(f"{path}: not the card of a dataset: {err}") from err
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: dataset format {version!r}, this version reads {FORMAT_VERSION}")
    series = {}
    for name, of in facts.items():
        if Path(name).name != name or name.startswith("."):
            raise ValueError(f"{path}: {name!r} is no name of a series")
        arrays = {key: _array(folder / f"{name}.{key}.npy", *kind) for key, kind in _ARRAYS.items()}
        series[name] = Series(of, **arrays)
        _check(series[name], folder / name)
    return series, card


def _array(path: Path, kind: type, ndim: int) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        if is_of_machine(err):
            raise
        raise ValueError(f"{path}: not a readable array: {err}") from err
    if found.dtype != kind or found.ndim != ndim:
        raise ValueError(f"{path}: {found.ndim} dimensions of {found.dtype}, expected {ndim} of {np.dtype(kind)}")
    return found


def _check(one: Series, path: Path) -> None:
    """The arrays fit each other, and what is learnt from is not validated with."""
    count, height, width = one.pixels.shape
    rows, columns = -(-height // MOTION_CELLS), -(-width // MOTION_CELLS)
    wanted = {
        "masks": (len(one.masks), height, -(-width // 8)),
        "mask_of": (count,),
        "motion": (count, 2, rows, columns),
        "slots": (count,),
        "part": (count,),
        "weights": (count,),
    }
    for key, shape in wanted.items():
        if getattr(one, key).shape != shape:
            raise ValueError(f"{path}.{key}.npy: {getattr(one, key).shape}, expected {shape}")
    if count and not 0 <= one.mask_of.min() <= one.mask_of.max() < len(one.masks):
        raise ValueError(f"{path}.mask_of.npy: there are {len(one.masks)} masks")
    for key, part in (("train", LEARN), ("validation", VALIDATE)):
        times = getattr(one, key)
        if len(times) and (not 0 <= times.min() <= times.max() < count or (one.part[times] != part).any()):
            raise ValueError(f"{path}.{key}.npy: frames that are not of that part of the data")


def fingerprint(series: dict[str, Series]) -> str:
    """Tells one set of data from another, without reading all of it."""
    digest = hashlib.sha256()
    for name, one in sorted(series.items()):
        digest.update(repr((name, one.facts, one.pixels.shape, one.train.tolist(), one.validation.tolist())).encode())
        digest.update(np.ascontiguousarray(one.pixels[:: max(len(one.pixels) // 8, 1)]).tobytes())
    return digest.hexdigest()

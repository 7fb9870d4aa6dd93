"""Training samples: windows of frames, cut, turned and mirrored at random, from memory or memory-mapped files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.faults import is_of_machine

TRAIN, VALIDATION = "train", "validation"


class Sample(NamedTuple):
    """One sequence: pixels (time, channel, height, width) uint8, observed (time, height, width) bool."""

    pixels: NDArray[np.uint8]
    observed: NDArray[np.bool_]


class Samples(Protocol):
    """Where training sequences come from. A sample is a function of part and number, so a run can be resumed."""

    def count(self, part: str) -> int:
        """How many different samples that part has; 0 is none."""
        ...

    def sample(self, part: str, number: int) -> Sample:
        """Sample ``number`` (0, 1, ... without end)."""
        ...


@dataclass(frozen=True)
class FrameSeries:
    """Frames of one domain on its fixed time axis.

    Attributes:
        pixels: (time, channel, height, width) uint8.
        observed: (time, height, width) bool.
        train, validation: first frames of the windows of each set; windows of the two never share a frame.
    """

    pixels: NDArray[np.uint8]
    observed: NDArray[np.bool_]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]


class Windows:
    """Random windows of several series.

    Args:
        length: frames of a window.
        crop: side of the square cut from each.
        seed: of windows, places, turns and mirror images.
        augment: turn and mirror; validation samples never are. Of these, the first so many are all different windows.

    Raises:
        ValueError: no series has a training window, or a grid is smaller than the crop.
    """

    def __init__(self, series: list[FrameSeries], length: int, crop: int, seed: int, *, augment: bool = True) -> None:
        self.series, self.length, self.crop, self.seed, self.augment = series, length, crop, seed, augment
        smallest = min((min(s.pixels.shape[-2:]) for s in series), default=0)
        if not any(len(s.train) for s in series) or smallest < crop:
            raise ValueError(
                f"no training window: need {length} consecutive frames of at least {crop} x {crop}; the smallest grid "
                f"has a side of {smallest}"
            )

    def count(self, part: str) -> int:
        """Windows of that part."""
        return sum(len(getattr(s, part)) for s in self.series)

    def sample(self, part: str, number: int) -> Sample:
        """See ``Samples``."""
        rng = np.random.default_rng((self.seed, (TRAIN, VALIDATION).index(part), number))
        counts = np.array([len(getattr(s, part)) for s in self.series])
        which = int(rng.integers(counts.sum())) if part == TRAIN else number % int(counts.sum())
        n = int(np.searchsorted(counts.cumsum(), which, side="right"))
        one = self.series[n]
        first = int(getattr(one, part)[which - counts[:n].sum()])
        height, width = one.pixels.shape[-2:]
        top, left = rng.integers(0, height - self.crop + 1), rng.integers(0, width - self.crop + 1)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        if not self.augment or part == VALIDATION:
            turns, flip = 0, False
        time = slice(first, first + self.length)
        crop = np.s_[..., top : top + self.crop, left : left + self.crop]
        pixels, observed = one.pixels[time][crop], one.observed[time][crop]
        return Sample(turned(np.where(observed[:, None], pixels, 0), turns, flip), turned(observed, turns, flip))


def turned(window: NDArray[Any], turns: int, flip: bool) -> NDArray[Any]:
    """Quarter turns of (..., height, width), then perhaps a mirror image."""
    window = np.rot90(window, turns, axes=(-2, -1))
    return window[..., ::-1] if flip else window


def save_series(folder: Path, series: dict[str, FrameSeries], about: dict[str, Any]) -> None:
    """Write series for a machine that has only ``models``: ``.npy`` files by name, and ``about.json``.

    Raises:
        FileExistsError: the folder exists.
    """
    folder.mkdir(parents=True)
    for name, one in series.items():
        for key in ("pixels", "observed", "train", "validation"):
            np.save(folder / f"{name}.{key}.npy", getattr(one, key))
    (folder / "about.json").write_text(json.dumps({**about, "series": list(series)}, indent=2) + "\n")


def load_series(folder: Path) -> tuple[dict[str, FrameSeries], dict[str, Any]]:
    """Read what ``save_series`` wrote; pixels stay on disk, memory-mapped.

    Raises:
        ValueError: names the file that is absent or no such data.
    """
    path = folder / "about.json"
    try:
        about = json.loads(path.read_text())
        names = [str(name) for name in about["series"]]
    except (OSError, ValueError, KeyError, TypeError) as err:
        if is_of_machine(err):
            raise
        raise ValueError(f"{path}: not a description of training data: {err}") from err
    series = {}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is no name of a series")
        arrays: dict[str, Any] = {}
        for key, kind, ndim in (
            ("pixels", np.uint8, 4),
            ("observed", np.bool_, 3),
            ("train", np.int64, 1),
            ("validation", np.int64, 1),
        ):
            path_of = folder / f"{name}.{key}.npy"
            try:
                arrays[key] = np.load(path_of, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as err:
                if is_of_machine(err):
                    raise
                raise ValueError(f"{path_of}: not a readable array: {err}") from err
            if arrays[key].dtype != kind or arrays[key].ndim != ndim:
                raise ValueError(f"{path_of}: {arrays[key].ndim} dimensions of {arrays[key].dtype}, not {key}")
        series[name] = FrameSeries(**arrays)
        _check(series[name], about, folder / name)
    return series, about


def _check(one: FrameSeries, about: dict[str, Any], path: Path) -> None:
    """Windows lie within the frames, and no frame is in a training and a validation window."""
    frames, channels, *grid = one.pixels.shape
    product = about.get("product", "")
    if one.observed.shape != (frames, *grid):
        raise ValueError(f"{path}.observed.npy: {one.observed.shape}, the pixels are {one.pixels.shape}")
    if channels != (1 if isinstance(product, str) else len(product)):
        raise ValueError(f"{path}.pixels.npy: {channels} channels, about.json says {product!r}")
    length = sum(about.get("window", [1]))
    for part in (one.train, one.validation):
        if len(part) and not 0 <= part.min() <= part.max() <= frames - length:
            raise ValueError(f"{path}: windows of {length} frames begin at {part.min()} to {part.max()} of {frames}")
    apart = np.abs(one.train[:, None] - one.validation[None, :])
    if apart.size and apart.min() < length:
        raise ValueError(f"{path}: training and validation windows of {length} frames share frames")

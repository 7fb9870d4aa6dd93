"""Moving MNIST: digits that drift and bounce. Sources: Srivastava et al. 2015; Wu 2019 for speeds and sizes.

Every sequence is made when it is asked for, and is a function of seed, part and number.
"""

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.windows import TRAIN, VALIDATION, Sample

TEST = "test"
PARTS = (TRAIN, VALIDATION, TEST)
DIGIT = 28
MAX_BYTES = 200 * 2**20


@dataclass(frozen=True)
class MovingMNISTConfig:
    """What the sequences are; the defaults are those of Wu 2019.

    Attributes:
        digits: in each sequence.
        frames, size: of a sequence.
        pool: first so many digits of the file are used.
        slowest, fastest: pixels a frame, in any direction; Srivastava moves all at 3.6 (a tenth of the free path).
        train, validation, test: different sequences of each part.
        seed: of everything.
    """

    digits: int = 2
    frames: int = 14
    size: int = 64
    pool: int = 500
    slowest: float = 1.0
    fastest: float = 4.0
    train: int = 8000
    validation: int = 2000
    test: int = 2000
    seed: int = 0


class MovingMNIST:
    """Samples for training, validation and test (``models.windows.Samples``)."""

    def __init__(self, images: NDArray[np.uint8], config: MovingMNISTConfig) -> None:
        if len(images) < config.pool:
            raise ValueError(f"{config.pool} digits are wanted, the file has {len(images)}")
        if config.size <= DIGIT:
            raise ValueError(f"frames of {config.size} pixels have no room for digits of {DIGIT} to move")
        self.images, self.config = images[: config.pool], config

    def count(self, part: str) -> int:
        """Different sequences of the part."""
        return {TRAIN: self.config.train, VALIDATION: self.config.validation, TEST: self.config.test}[part]

    def sample(self, part: str, number: int) -> Sample:
        """Sequence ``number``: of training a new order each time all have been seen, of the others as they are."""
        count = self.count(part)
        which = number % count
        if part == TRAIN:
            which = int(np.random.default_rng((self.config.seed, 9, number // count)).permutation(count)[which])
        pixels, _ = self.sequence(part, which)
        return Sample(pixels[:, None], np.ones(pixels.shape, bool))

    def sequence(self, part: str, which: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Frames (time, size, size), overlapping digits by the larger value, and corners (digit, time, 2) y and x."""
        c = self.config
        rng = np.random.default_rng((c.seed, PARTS.index(part), which))
        paths = np.stack([trajectory(rng, c) for _ in range(c.digits)])
        frames = np.zeros((c.frames, c.size, c.size), np.uint8)
        for path in paths:
            image = self.images[rng.integers(len(self.images))]
            for frame, (y, x) in zip(frames, np.rint(path).astype(int), strict=True):
                place = frame[y : y + DIGIT, x : x + DIGIT]
                np.maximum(place, image, out=place)
        return frames, paths


def trajectory(rng: np.random.Generator, config: MovingMNISTConfig) -> NDArray[np.float64]:
    """Corner of a digit at each time, (time, 2): at a wall it stops, and turns round."""
    free = config.size - DIGIT
    position = rng.random(2) * free
    angle, speed = rng.random() * 2 * np.pi, rng.uniform(config.slowest, config.fastest)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    path = np.empty((config.frames, 2))
    for t in range(config.frames):
        position = position + velocity
        velocity = np.where((position <= 0) | (position >= free), -velocity, velocity)
        position = position.clip(0, free)
        path[t] = position
    return path


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Images (number, 28, 28) of an IDX file, plain or gzip.

    Raises:
        ValueError: names the file; absent, too large, cut off, or not images of 28 x 28.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError) as err:
        raise ValueError(f"{path}: not readable: {err}") from err
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES} bytes")
    if len(data) < 16:
        raise ValueError(f"{path}: {len(data)} bytes, no IDX header")
    magic, count, rows, columns = struct.unpack(">4I", data[:16])
    if magic != 0x803 or (rows, columns) != (DIGIT, DIGIT):
        raise ValueError(f"{path}: not an IDX file of images of 28 x 28 (magic {magic:#x}, {rows} x {columns})")
    if len(data) - 16 != count * rows * columns:
        raise ValueError(f"{path}: {len(data) - 16} bytes of pixels, {count} images take {count * rows * columns}")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, rows, columns)

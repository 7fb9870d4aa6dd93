"""Training samples in the moving frame: squares that travel with the rain, on a common grid of time and space.

All domains are brought to steps of about ten minutes and cells of about two kilometres: every second frame of 5 or 6
minutes, means of 2 x 2 cells of a kilometre. Rain of other Z-R relations is brought to that of Marshall and Palmer,
which shifts and stretches the pixels (``Rain``).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.dataset import MOTION_CELLS, Series
from models.layers.warp import pixel_grid
from models.windows import TRAIN, VALIDATION, Sample, turned

STEP_MINUTES, SPACING_M = 10.0, 2000.0
MOTION_FRAMES = 4
MARSHALL_PALMER = (200.0, 1.6)
# a square with less is tried again; after so many tries it is taken
ENOUGH_SEEN, ENOUGH_WET, TRIES = 0.4, 0.02, 6


@dataclass(frozen=True)
class Rain:
    """From pixels of a domain to those that the same rain rate has by Marshall and Palmer, and back.

    Both are linear in dBZ, and the logarithm of the rate is linear in dBZ, so this is a line; no echo stays none.

    Attributes:
        a, b: of Z = a R^b.
        dbz_min, dbz_max: of pixels 0 and 1.
    """

    a: float
    b: float
    dbz_min: float
    dbz_max: float

    @property
    def line(self) -> tuple[float, float]:
        """Slope and offset."""
        a, b = MARSHALL_PALMER
        slope = b / self.b
        dbz = 10 * math.log10(a) - slope * 10 * math.log10(self.a) + (slope - 1) * self.dbz_min
        return slope, dbz / (self.dbz_max - self.dbz_min)

    @property
    def steep(self) -> float:
        """The rain rate of a domain grows with exp(steep * pixel)."""
        return (self.dbz_max - self.dbz_min) * math.log(10) / (10 * self.b)

    def common(self, pixels: Tensor) -> Tensor:
        """Pixels (0-1) of a domain as those of Marshall and Palmer."""
        slope, offset = self.line
        return torch.where(pixels > 0, (pixels * slope + offset).clamp(0, 1), 0.0)

    def own(self, pixels: Tensor) -> Tensor:
        """Inverse of ``common``."""
        slope, offset = self.line
        return torch.where(pixels > 0, ((pixels - offset) / slope).clamp(0, 1), 0.0)


def every(cadence_minutes: float) -> int:
    """Frames in a common step."""
    return max(1, round(STEP_MINUTES / cadence_minutes))


def thinned(spacing_m: float) -> int:
    """Cells along a side of a common cell."""
    return max(1, round(SPACING_M / spacing_m))


class MovingWindows:
    """Squares around a reference time, along the motion that was known then (``models.training.Samples``).

    The past comes from where the rain was, bilinear; the future from where it goes, by the nearest cell, so that its
    rates keep their distribution. What is not observed there, or belongs to another part of the data, is masked.

    Args:
        input_frames, lead_frames: of a sample, common steps.
        crop: side of the square, common cells.
        seed: of places, turns and mirror images.

    Raises:
        ValueError: no series has a training sample.
    """

    def __init__(self, series: list[Series], input_frames: int, lead_frames: int, crop: int, seed: int) -> None:
        self.input_frames, self.lead_frames, self.crop, self.seed = input_frames, lead_frames, crop, seed
        self.series = series
        self._times = {part: [getattr(one, part) for one in series] for part in (TRAIN, VALIDATION)}
        # a long or large series has more to tell, but neighbours resemble each other
        size = np.array([(len(one.train) * one.pixels[0].size) ** 0.5 for one in series])
        self._shares = size / max(size.sum(), 1.0)
        if not self.count(TRAIN):
            raise ValueError("there is no time to learn from in these data")

    def count(self, part: str) -> int:
        """Reference times of that part."""
        return sum(map(len, self._times[part]))

    def sample(self, part: str, number: int) -> Sample:
        """See ``models.training.Samples``; wet times are drawn more often, by their weights.

        Those of validation are neither drawn nor turned: each time comes once before any comes again.
        """
        rng = np.random.default_rng((self.seed, (TRAIN, VALIDATION).index(part), number))
        if part == VALIDATION:
            every_time = [
                (one, int(t)) for one, times in zip(self.series, self._times[part], strict=True) for t in times
            ]
            one, time = every_time[number % len(every_time)]
            return self._at(one, time, *self._place(one, time, rng))
        n = int(rng.choice(len(self.series), p=self._shares))
        one, times = self.series[n], self._times[part][n]
        weights = one.weights[times].astype(np.float64)
        time = int(rng.choice(times, p=weights / weights.sum()))
        made = self._at(one, time, *self._place(one, time, rng))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        return Sample(turned(made.pixels, turns, flip), turned(made.observed, turns, flip))

    def _place(self, one: Series, time: int, rng: np.random.Generator) -> tuple[int, int]:
        """Corner of a square that is observed and wet, if one is found."""
        (height, width), observed = one.shape, one.observed(time)
        side = self.crop * thinned(one.facts.spacing_m)
        for _ in range(TRIES):
            top, left = (int(rng.integers(0, max(length - side, 0) + 1)) for length in (height, width))
            here = np.s_[top : top + side, left : left + side]
            if observed[here].mean() > ENOUGH_SEEN and (one.pixels[time][here] > 0).mean() > ENOUGH_WET:
                break
        return top, left

    def _at(self, one: Series, time: int, top: int, left: int) -> Sample:
        step, thin = every(one.facts.cadence_minutes), thinned(one.facts.spacing_m)
        length = self.input_frames + self.lead_frames
        pixels = np.zeros((length, 1, self.crop, self.crop), np.uint8)
        observed = np.zeros((length, self.crop, self.crop), bool)
        motion = torch.from_numpy(one.motion[time].astype(np.float32))
        # centres of the common cells, in cells of the frames
        start = pixel_grid(torch.zeros(1, 1, self.crop, self.crop)) * thin + (thin - 1) / 2
        start = start + torch.tensor((left, top), dtype=torch.float32).view(1, 2, 1, 1)
        rain = Rain(one.facts.a, one.facts.b, one.facts.dbz_min, one.facts.dbz_max)
        past = [start, *_along(motion, start, step * (self.input_frames - 1), -1)][::step]
        for n, position in enumerate(past):
            row = self.input_frames - 1 - n
            values, seen = _bilinear(one, time - n * step, position, thin, rain)
            pixels[row, 0], observed[row] = values, seen
        ahead = [n for n in range(1, self.lead_frames + 1) if one.together(time, time + n * step)]
        future = list(_along(motion, start, step * max(ahead, default=0), 1))
        for n in ahead:
            values, seen = _nearest(one, time + n * step, future[n * step - 1], rain)
            pixels[self.input_frames - 1 + n, 0], observed[self.input_frames - 1 + n] = values, seen
        return Sample(pixels, observed)


def reference_times(one: Series, part: int, input_frames: int) -> NDArray[np.int64]:
    """Numbers of the frames that have the inputs before them and a frame after them, all of one part of the data."""
    step = every(one.facts.cadence_minutes)
    before = max(MOTION_FRAMES - 1, step * (input_frames - 1))
    return np.array(
        [
            time
            for time in range(before, len(one.pixels) - step)
            if one.part[time] == part and one.together(time, time - before) and one.together(time, time + step)
        ],
        np.int64,
    )


def _along(motion: Tensor, position: Tensor, steps: int, sign: int) -> list[Tensor]:
    """Positions after 1, 2, ... frames along a steady motion, by the midpoint rule."""
    found = []
    for _ in range(steps):
        half = position + 0.5 * sign * _motion_at(motion, position)
        position = position + sign * _motion_at(motion, half)
        found.append(position)
    return found


def _motion_at(motion: Tensor, position: Tensor) -> Tensor:
    height, width = motion.shape[-2:]
    x, y = ((position + 0.5) / MOTION_CELLS).unbind(dim=1)
    grid = torch.stack((2 * x / width - 1, 2 * y / height - 1), dim=-1)
    return F.grid_sample(motion[None], grid, mode="bilinear", padding_mode="border", align_corners=False)


def _bilinear(
    one: Series, time: int, position: Tensor, thin: int, rain: Rain
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A frame at positions, mean over ``thin`` x ``thin`` cells, of what is observed."""
    height, width = one.shape
    (x, y), margin = position[0], thin + 1
    rows = slice(max(int(y.min()) - margin, 0), min(int(y.max()) + margin + 2, height))
    columns = slice(max(int(x.min()) - margin, 0), min(int(x.max()) + margin + 2, width))
    if rows.stop - rows.start < 2 or columns.stop - columns.start < 2:  # the rain comes from outside
        return np.zeros(x.shape, np.uint8), np.zeros(x.shape, bool)
    seen = torch.from_numpy(np.ascontiguousarray(one.observed(time)[rows, columns])).float()
    values = torch.from_numpy(np.array(one.pixels[time, rows, columns])).float() / 255
    both = torch.stack((rain.common(values) * seen, seen))[None]
    if thin > 1:
        both = F.avg_pool2d(F.pad(both, (thin // 2, (thin - 1) // 2) * 2), thin, 1)
        x, y = x + 0.5 * (1 - thin % 2), y + 0.5 * (1 - thin % 2)
    x, y = x - columns.start, y - rows.start
    size = both.shape[-2:]
    grid = torch.stack((2 * x / (size[1] - 1) - 1, 2 * y / (size[0] - 1) - 1), dim=-1)[None]
    value, weight = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]
    there = weight > 0.5
    pixels = torch.where(there, value / weight.clamp_min(0.5), 0.0)
    return torch.floor(pixels * 255 + 0.5).to(torch.uint8).numpy(), there.numpy()


def _nearest(one: Series, time: int, position: Tensor, rain: Rain) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A frame at the nearest cells of positions."""
    height, width = one.shape
    x, y = (np.rint(part.numpy()).astype(np.int64) for part in position[0])
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    seen = one.observed(time)[y, x] & inside
    table = torch.floor(rain.common(torch.arange(256) / 255) * 255 + 0.5).to(torch.uint8).numpy()
    return np.where(seen, table[one.pixels[time][y, x]], 0).astype(np.uint8), seen


def weights_of(pixels: NDArray[np.uint8], observed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weight of each frame in sampling: the share of observed cells with echo, between 0.005 and 0.2."""
    wet = [(frame > 0).sum() / max(seen.sum(), 1) for frame, seen in zip(pixels, observed, strict=True)]
    return np.clip(np.array(wet, np.float32), 0.005, 0.2)

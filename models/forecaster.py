"""Batched inference: frames in, frames out, within a memory budget, and independent of the company of a forecast."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Measured, Method, Prediction
from models.memory import PLENTY
from models.networks.network import Network
from models.tiles import tiles_within, within

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16")
MOST_SAMPLES = 64  # in a pass on a GPU


@dataclass(frozen=True)
class Forecast:
    """Frames of one batch.

    Attributes:
        pixels: (batch, lead, channel, height, width) uint8.
        extrapolated: (batch, lead, height, width) bool, see ``models.contract.Prediction``.
        exceedance: (batch, lead, level, height, width) probabilities in 1/255, uint8; None if the method has none.
    """

    pixels: NDArray[np.uint8]
    extrapolated: NDArray[np.bool_]
    exceedance: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Plan:
    """How a batch is cut: samples in a pass, and parts of the grid, each with what of it is kept."""

    samples: int
    tiles: tuple[tuple[slice, slice, slice, slice], ...]


class Forecaster:
    """Runs one method on one device.

    A pass has the smallest power of two of samples that holds the batch, filled up with empty ones, so no forecast
    depends on its company but by the kernels that a device chooses for that many. How many samples fit into the budget
    is worked out before, from what the method says that it takes; a network that is too large for it even with one
    sample works tile by tile. When memory runs out all the same, passes are halved for good.

    Tiles overlap by as much as a pixel can matter (``Network.influence``), so a forecast in tiles is that of one piece,
    but for the last bit of sums that are added up in another order: now and then a pixel value differs by one.

    Args:
        method: a network or baseline.
        device: torch device; ``auto`` is a GPU where there is one.
        precision: ``bfloat16`` computes convolutions, products and hidden states in it; cell states, positions and the
            frames that are fed back are float32.
        memory_mb: budget of one pass; weights, and the arrays given and returned, come on top. Baselines take what
            they take.
        samples: most samples in a pass; 0 is one on a CPU, where more gain nothing, and 64 on a GPU.
        threads: CPU threads of this process. Sums inside a convolution may be ordered by thread, so equal products
            need equal numbers.

    Raises:
        ValueError: an unknown precision, or a device that is not there.
    """

    def __init__(
        self,
        method: Method,
        *,
        device: str = "cpu",
        precision: str = "float32",
        memory_mb: int = 4096,
        samples: int = 0,
        threads: int = 1,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        self.device = resolved_device(device)
        self.method, self.precision, self.memory_mb = method, precision, memory_mb
        self.threads = min(threads, os.cpu_count() or 1)
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._most = samples or (1 if self.device.type == "cpu" else MOST_SAMPLES)
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._may_capture = self.device.type == "cuda" and isinstance(method, Network)
        if isinstance(method, torch.nn.Module):
            method.to(self.device).eval()

    @property
    def samples_at_once(self) -> int:
        """Most samples that a pass takes; a longer batch only means that its first forecasts wait for the last."""
        return self._most

    def predict(self, frames: NDArray[np.uint8], observed: NDArray[np.bool_], leads: int) -> Forecast:
        """Forecast a batch.

        Args:
            frames: (batch, time, channel, height, width) uint8, oldest first.
            observed: (batch, time, height, width) bool.
            leads: number of frames to forecast.

        Raises:
            TypeError, ValueError: arrays that do not fit, or that the network cannot take.
            RuntimeError: a forecast that is not finite.
            MemoryError: the budget is too small for a network that cannot work in tiles.
        """
        if frames.dtype != np.uint8 or observed.dtype != np.bool_:
            raise TypeError(f"frames must be uint8 and observed bool, got {frames.dtype} and {observed.dtype}")
        if frames.ndim != 5 or observed.shape != (*frames.shape[:2], *frames.shape[3:]):
            raise ValueError(
                f"frames must be (batch, time, channel, height, width) and observed the same without channel, got "
                f"{frames.shape} and {observed.shape}"
            )
        torch.set_num_threads(self.threads)
        shape = (len(frames), leads, *frames.shape[2:])
        made = Forecast(np.zeros(shape, np.uint8), np.zeros((*shape[:2], *shape[3:]), bool))
        first = 0
        while first < len(frames):
            plan = self._plan(len(frames) - first, (*frames.shape[1:], leads))
            samples = slice(first, first + plan.samples)
            try:
                for tile in plan.tiles:
                    made = self._pass(frames, observed, leads, samples, tile, plan.samples, made)
            except RuntimeError as err:
                if not _is_out_of_memory(err) or plan.samples == 1:
                    raise
                log.warning("out of memory with %d samples in a pass, going on with half", plan.samples)
                self._graphs.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self._most = plan.samples // 2
                self._plans.clear()
                continue
            first += plan.samples
        return made

    @torch.inference_mode()
    def _pass(
        self,
        frames: NDArray[np.uint8],
        observed: NDArray[np.bool_],
        leads: int,
        samples: slice,
        tile: tuple[slice, slice, slice, slice],
        size: int,
        made: Forecast,
    ) -> Forecast:
        """Forecast some samples of a part of the grid into ``made``."""
        rows, columns, keep_rows, keep_columns = tile
        x = torch.from_numpy(np.ascontiguousarray(frames[samples, ..., rows, columns])).to(self.device)
        seen = torch.from_numpy(np.ascontiguousarray(observed[samples, ..., rows, columns])).to(self.device)
        count = len(x)
        if count < size:
            x = torch.cat((x, x.new_zeros((size - count, *x.shape[1:]))))
            seen = torch.cat((seen, seen.new_zeros((size - count, *seen.shape[1:]))))
        made_here = self._forward(x, seen.unsqueeze(2), leads)
        if not bool(torch.isfinite(made_here.values).all()):
            raise RuntimeError("the forecast holds values that are not finite; they would read as no rain")
        inside = (slice(None), slice(None), slice(None), within(rows, keep_rows), within(columns, keep_columns))
        place = (samples, slice(None), slice(None), keep_rows, keep_columns)
        made.pixels[place] = _bytes(made_here.values[:count][inside])
        flags = made_here.extrapolated[:count][inside][:, :, 0]
        made.extrapolated[samples, :, keep_rows, keep_columns] = flags.cpu().numpy()
        if made_here.exceedance is None:
            return made
        exceedance = made.exceedance
        if exceedance is None:
            levels = made_here.exceedance.shape[2]
            exceedance = np.zeros((*made.pixels.shape[:2], levels, *made.pixels.shape[3:]), np.uint8)
        exceedance[place] = _bytes(made_here.exceedance[:count][inside])
        return Forecast(made.pixels, made.extrapolated, exceedance)

    def _forward(self, x: Tensor, seen: Tensor, leads: int) -> Prediction:
        """One pass, on a GPU by a captured graph: launching hundreds of small kernels takes longer than they run."""
        if self._may_capture:
            key = (*x.shape, leads)
            try:
                if key not in self._graphs:
                    self._graphs.clear()  # one shape at a time holds memory
                    self._graphs[key] = _Graph(self._eager, x, seen, leads)
                return self._graphs[key](x, seen)
            except RuntimeError as err:
                if _is_out_of_memory(err):
                    raise
                log.warning("no graph could be captured, going on without: %s", err)
                self._may_capture = False
        return self._eager(x, seen, leads)

    def _eager(self, x: Tensor, seen: Tensor, leads: int) -> Prediction:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            made = self.method(x.float() / 255, seen, leads)
        return made

    def _plan(self, batch: int, key: tuple[int, int, int, int, int]) -> _Plan:
        samples = min(self._most, 1 << (batch - 1).bit_length())
        if (samples, *key) not in self._plans:
            self._plans[samples, *key] = self._planned(samples, *key)
        return self._plans[samples, *key]

    def _planned(self, samples: int, frames: int, channels: int, height: int, width: int, leads: int) -> _Plan:
        """As many samples as the budget holds; tiles of the grid if it does not hold one."""
        whole = _Plan(samples, ((slice(0, height), slice(0, width)) * 2,))
        if not isinstance(self.method, Measured):
            return whole
        budget = self.memory_mb * 2**20
        if self.device.type == "cuda":
            self._graphs.clear()  # what they hold, and what the allocator keeps, is free for the next plan
            torch.cuda.empty_cache()
            budget = min(budget, int(0.8 * torch.cuda.mem_get_info(self.device)[0]))
        if samples * height * width * PLENTY <= budget:
            return whole
        each = self.method.peak_bytes(1, frames, leads, height, width)
        while samples > 1 and samples * each > budget:
            samples //= 2
        if each <= budget:
            return _Plan(samples, whole.tiles)
        if not isinstance(self.method, Network):
            raise MemoryError(
                f"one forecast takes {each / 2**20:.0f} MB, the budget is {budget / 2**20:.0f} MB; raise memory_mb"
            )
        tiles = tiles_within(self.method, budget, frames, leads, height, width)
        log.info("forecasts in %d tiles: one piece would take %.0f MB", len(tiles), each / 2**20)
        return _Plan(1, tuple(tiles))


def resolved_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.

    Raises:
        ValueError: another name, or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r}: there are auto, cpu, cuda and cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: there is no CUDA device of that number here; use 'cpu' or 'auto'")
    return device


class _Graph:
    """A forecast captured once and replayed on new data in the same memory."""

    def __init__(
        self, forecast: Callable[[Tensor, Tensor, int], Prediction], x: Tensor, seen: Tensor, leads: int
    ) -> None:
        self.x, self.seen = x.clone(), seen.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen and loaded before the capture
            for _ in range(2):
                forecast(self.x, self.seen, leads)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.made = forecast(self.x, self.seen, leads)

    def __call__(self, x: Tensor, seen: Tensor) -> Prediction:
        self.x.copy_(x)
        self.seen.copy_(seen)
        self.graph.replay()
        return self.made


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """0-1 as 0-255, rounded."""
    return torch.floor(values.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def _is_out_of_memory(err: RuntimeError) -> bool:
    return isinstance(err, torch.OutOfMemoryError) or "can't allocate memory" in str(err)

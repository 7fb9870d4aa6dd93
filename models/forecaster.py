"""Batched inference: frames in, frames out, independent of the company a forecast is computed in."""

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.contract import Method


@dataclass(frozen=True)
class Forecast:
    """Frames of one batch.

    Attributes:
        pixels: (batch, lead, channel, height, width) uint8.
        extrapolated: (batch, lead, height, width) bool, see ``models.contract.Prediction``.
    """

    pixels: NDArray[np.uint8]
    extrapolated: NDArray[np.bool_]


class Forecaster:
    """Runs one method on one device in micro-batches of a fixed, padded shape.

    Every forward pass has the shape (micro_batch, J, C, H', W') with H' and W' the next multiples of ``multiple``,
    filled up with unobserved cells and empty samples, so that no forecast depends on its company. On running out of
    memory the micro-batch is halved, for good.

    Args:
        method: a network or baseline.
        device: torch device; on a CPU the micro-batch defaults to 1, since batching gains nothing there.
        threads: CPU threads of this process. Sums inside a convolution may be ordered by thread, so equal products
            need equal numbers.
    """

    def __init__(
        self, method: Method, *, device: str = "cpu", micro_batch: int = 0, multiple: int = 16, threads: int = 1
    ) -> None:
        self.method = method
        self.device = torch.device(device)
        self.micro_batch = micro_batch or (1 if self.device.type == "cpu" else 8)
        self.multiple = multiple
        self.threads = min(threads, os.cpu_count() or 1)
        if isinstance(method, torch.nn.Module):
            method.to(self.device).eval()

    def predict(self, frames: NDArray[np.uint8], observed: NDArray[np.bool_], leads: int) -> Forecast:
        """Forecast a batch.

        Args:
            frames: (batch, time, channel, height, width) uint8, oldest first.
            observed: (batch, time, height, width) bool.
            leads: number of frames to forecast.
        """
        torch.set_num_threads(self.threads)
        done: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = []
        first = 0
        while first < len(frames):
            last = first + self.micro_batch
            try:
                done.append(self._forward(frames[first:last], observed[first:last], leads))
            except torch.cuda.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
                torch.cuda.empty_cache()
                self.micro_batch //= 2
                continue
            first = last
        return Forecast(np.concatenate([p for p, _ in done]), np.concatenate([e for _, e in done]))

    @torch.inference_mode()
    def _forward(
        self, frames: NDArray[np.uint8], observed: NDArray[np.bool_], leads: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        count, height, width = len(frames), *frames.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        x = F.pad(torch.from_numpy(np.ascontiguousarray(frames)).to(self.device), padding).float() / 255
        seen = F.pad(torch.from_numpy(np.ascontiguousarray(observed)).to(self.device), padding).unsqueeze(2)
        if count < self.micro_batch:
            missing = self.micro_batch - count
            x = torch.cat((x, x.new_zeros((missing, *x.shape[1:]))))
            seen = torch.cat((seen, seen.new_zeros((missing, *seen.shape[1:]))))
        prediction = self.method(x * seen, seen, leads)
        pixels = torch.floor(prediction.values[:count, ..., :height, :width].clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        flags = prediction.extrapolated[:count, :, 0, :height, :width]
        return pixels.cpu().numpy(), flags.cpu().numpy()

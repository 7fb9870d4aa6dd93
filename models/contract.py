"""The one contract that networks and baselines share.

Fields are 0-255 frames divided by 255, so linear in dBZ; 0 is "no echo". Cells that are not
observed enter as 0 and are named by the ``observed`` mask, never by NaN.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """What a method forecasts.

    Attributes:
        values: (batch, lead, channel, height, width), 0-1.
        extrapolated: (batch, lead, 1, height, width) bool; True where the value did not come from an
            observed cell along the motion (inflow over the edge of the coverage).
        exceedance: (batch, lead, level, height, width) probability that the first channel reaches each level of the
            network's head; None for methods that give values only.
    """

    values: Tensor
    extrapolated: Tensor
    exceedance: Tensor | None = None


class Method(Protocol):
    """A network, optical flow or the last frame: J frames in, K frames out."""

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """Forecast ``leads`` frames at the cadence of the input.

        Args:
            frames: (batch, time, channel, height, width) float, 0-1, oldest first.
            observed: (batch, time, 1, height, width) bool.
            leads: number of frames to forecast, at least 1.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """A method that says how much memory it takes; of others a pass is never cut."""

    def peak_bytes(self, batch: int, frames: int, leads: int, height: int, width: int) -> int:
        """Estimated peak memory of one pass in float32, input and output included, weights not."""
        ...


def check_input(frames: Tensor, observed: Tensor, leads: int, *, channels: int, min_frames: int, min_side: int) -> None:
    """Refuse what a network cannot take.

    Raises:
        TypeError: frames are not floating point.
        ValueError: shapes that do not fit, too few frames, a grid that is too small, pixels that are not 0-1 or NaN
            (looked at on a CPU only; a GPU would wait for it).
    """
    if not frames.is_floating_point():
        raise TypeError(f"frames must be floating point pixels, 0-1, got {frames.dtype}; divide 0-255 pixels by 255")
    if frames.ndim != 5:
        raise ValueError(f"frames must be (batch, time, channel, height, width), got shape {tuple(frames.shape)}")
    batch, time, found, height, width = frames.shape
    if not batch:
        raise ValueError("an empty batch: there is nothing to forecast")
    if found != channels:
        raise ValueError(f"frames have {found} channels, the network takes {channels}")
    if time < min_frames:
        raise ValueError(f"{time} input frames, the network takes at least {min_frames}")
    if min(height, width) < min_side:
        raise ValueError(f"a grid of {height} x {width}, the network takes at least {min_side} x {min_side}")
    if tuple(observed.shape) != (batch, time, 1, height, width):
        raise ValueError(f"observed must be {(batch, time, 1, height, width)}, got {tuple(observed.shape)}")
    if leads < 1:
        raise ValueError(f"{leads} lead frames asked for, at least 1 is needed")
    if frames.device.type == "cpu" and frames.numel():
        low, high = (float(v) for v in torch.aminmax(frames))
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"pixels must be 0-1 without NaN, found {low:g} to {high:g}")

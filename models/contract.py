"""The one contract that networks and baselines share.

Fields are 0-255 frames divided by 255, so linear in dBZ; 0 is "no echo". Cells that are not
observed enter as 0 and are named by the ``observed`` mask, never by NaN.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Prediction(NamedTuple):
    """What a method forecasts.

    Attributes:
        values: (batch, lead, channel, height, width), 0-1.
        extrapolated: (batch, lead, 1, height, width) bool; True where the value did not come from an
            observed cell along the motion (inflow over the edge of the coverage).
    """

    values: Tensor
    extrapolated: Tensor


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

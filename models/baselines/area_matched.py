"""Optical flow, smoothed and matched in area: what smoothing alone gains, so that a network can be told from it.

The moved frame is blurred, the more the later; each level of rain goes to the highest of the blurred cells, as many as
reach it in the moved frame, and the moved frame is clipped to that.
"""

import torch
from torch import Tensor

from models.baselines.motion import blur, estimate_motion
from models.baselines.optical_flow import carried, departures
from models.composition import Composition, composed
from models.contract import Prediction

# standard deviation of the blur, km for each minute ahead
KM_PER_MINUTE = 4 / 30


class AreaMatched:
    """The control, for frames of one kind.

    Args:
        cadence_minutes, spacing_m: of the frames.
        levels: pixel values (0-1), whole 255ths, whose areas are kept.
        steep: see ``models.composition.composed``.
    """

    def __init__(self, cadence_minutes: float, spacing_m: float, levels: tuple[float, ...], steep: float) -> None:
        self.cells_a_lead = KM_PER_MINUTE * cadence_minutes * 1000 / spacing_m
        self.borders, self.steep = levels, steep
        nothing = (0.0,) * len(levels)
        self.how = Composition(nothing, nothing, 0.0)

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``; one channel."""
        motion = estimate_motion(frames[:, :, 0], observed[:, :, 0])
        last, seen = frames[:, -1, :1], observed[:, -1]
        values, flags = [], []
        for n, (there, outside) in enumerate(departures(seen, motion, leads), start=1):
            moved = carried(last, seen, there)
            sigma = max(0.5, self.cells_a_lead * n)
            smooth = blur(moved * seen, sigma) / blur(seen.to(moved.dtype), sigma).clamp_min(0.05)
            ranks = smooth.repeat(1, len(self.borders), 1, 1)
            values.append(composed(moved, moved, ranks, moved, seen, self.borders, self.how, self.steep))
            flags.append(outside)
        return Prediction(torch.stack(values, dim=1), torch.stack(flags, dim=1))

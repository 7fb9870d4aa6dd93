"""Eulerian persistence: every lead is the newest frame."""

import torch
from torch import Tensor

from models.contract import Prediction


class LastFrame:
    """Repeats the newest frame. Where it is not observed the value is 0."""

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``; nothing is extrapolated."""
        last = (frames[:, -1] * observed[:, -1]).unsqueeze(1)
        values = last.expand(-1, leads, -1, -1, -1)
        return Prediction(values, torch.zeros_like(values[:, :, :1], dtype=torch.bool))

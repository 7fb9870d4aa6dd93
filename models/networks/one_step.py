"""Networks that make one frame from the newest few, and are applied to their own output for more than one lead."""

import torch
from torch import Tensor

from models.heads import Head
from models.networks.network import Feed, Network


class OneStepNetwork(Network):
    """A subclass writes ``step``.

    Args:
        window: frames that ``step`` looks at.
    """

    takes_teacher = True

    def __init__(self, channels: int, window: int) -> None:
        super().__init__(channels, Head())
        self.min_frames = window

    def step(self, frames: Tensor) -> Tensor:
        """(batch, window, channel, height, width) -> (batch, channel, height, width)."""
        raise NotImplementedError

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``."""
        newest, outputs = list(frames[:, -self.min_frames :].unbind(dim=1)), []
        for k in range(leads):
            outputs.append(self.step(torch.stack(newest, dim=1)))
            newest = [*newest[1:], feed(self.output.values(outputs[-1]), k)]
        return torch.stack(outputs, dim=1)

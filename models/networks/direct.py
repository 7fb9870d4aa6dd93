"""Networks that make all their lead frames at once from a fixed number of input frames."""

import torch
from torch import Tensor

from models.heads import Head
from models.networks.network import Feed, Network


class DirectNetwork(Network):
    """A subclass writes ``direct``.

    The newest ``input_frames`` enter; for more leads than ``lead_frames`` it is applied again, to its own output.
    """

    def __init__(self, channels: int, head: Head, input_frames: int, lead_frames: int) -> None:
        super().__init__(channels, head)
        if input_frames < 1 or lead_frames < 1:
            raise ValueError(f"input_frames and lead_frames must be at least 1, got {input_frames} and {lead_frames}")
        self.min_frames, self.lead_frames = input_frames, lead_frames

    def direct(self, frames: Tensor) -> Tensor:
        """(batch, input_frames, channel, height, width) -> (batch, lead_frames, outputs, height, width)."""
        raise NotImplementedError

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``."""
        made: list[Tensor] = []
        while len(made) * self.lead_frames < leads:
            made.append(self.direct(frames[:, -self.min_frames :]))
            own = self.output.values(made[-1])
            frames = torch.cat(
                (frames, torch.stack([feed(own[:, k], k) for k in range(self.lead_frames)], dim=1)), dim=1
            )
        return torch.cat(made, dim=1)[:, :leads]

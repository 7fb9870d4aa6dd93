"""Dynamic filter network with one softmax filter a pixel. Source: De Brabandere et al. 2016, Moving MNIST."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.layers.local_filter import local_filter
from models.networks.network import Feed, Network

SLOPE = 0.01


@dataclass(frozen=True)
class DynamicFilterConfig:
    """Architecture.

    Attributes:
        side: of the filters; rain moves by at most ``side // 2`` pixels a frame.
        widths: channels of the encoder at full and at half resolution, and of the state.
        channels: input and output channels, which share the filters.
    """

    side: int = 9
    widths: tuple[int, int, int] = (32, 64, 128)
    channels: int = 1


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=SLOPE, nonlinearity="leaky_relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE))


class DynamicFilterNet(Network):
    """Reads one frame after the other into a hidden state, which says how each pixel is made from the last frame.

    The output is a weighted mean of input pixels, so it can move and spread rain, not make it.
    """

    multiple = 2
    takes_teacher = True

    def __init__(self, config: DynamicFilterConfig) -> None:
        super().__init__(config.channels, Head())
        self.config = config
        self.reach = config.side // 2
        full, half, state = config.widths
        self.encoder = nn.Sequential(
            _conv(config.channels, full), _conv(full, full, stride=2), _conv(full, half), _conv(half, half),
            _conv(half, state),
        )  # fmt: skip
        self.memory = nn.Sequential(_conv(state, state), _conv(state, state))
        self.decoder = nn.Sequential(
            _conv(state, half), _conv(half, half), nn.Upsample(scale_factor=2), _conv(half, half), _conv(half, half),
            _conv(half, state, kernel=1), nn.Conv2d(state, config.side**2, 1),
        )  # fmt: skip

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``."""
        batch, time = frames.shape[:2]
        encoded = self.encoder(frames.flatten(0, 1)).unflatten(0, (batch, time))
        hidden = torch.zeros_like(encoded[:, 0])
        for t in range(time):
            hidden = encoded[:, t] + self.memory(hidden)
        last, outputs = frames[:, -1], []
        for k in range(leads):
            if k:
                hidden = self.encoder(last) + self.memory(hidden)
            outputs.append(local_filter(last, F.softmax(self.decoder(hidden).to(last.dtype), dim=1)))
            last = feed(outputs[-1], k)
        return torch.stack(outputs, dim=1)

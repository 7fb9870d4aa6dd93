"""2D and 3D convolutional encoder-decoders. Source: Shi et al. 2017, the baselines of HKO-7.

The strides, kernels and growth of the widths are theirs; how many channels the third halving has, and what the 3D
network does with time (kernels of three, time mapped to leads at the coarsest grid) is our reading.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.layers.conv_gru import SLOPE
from models.networks.direct import DirectNetwork

DOWN = ((7, 5, 1), (4, 3, 1), (4, 2, 1), (4, 2, 1), (4, 2, 1))  # kernel, stride, padding
UP = ((4, 2, 1), (4, 2, 1), (4, 2, 1), (5, 3, 1), (7, 5, 1))
GROWTH_DOWN = (1, 2, 3, 4, 4)
GROWTH_UP = (8, 4, 2, 1, 1)


@dataclass(frozen=True)
class CNNConfig:
    """Architecture.

    Attributes:
        three_d: convolve over time too; else the frames are channels.
        base: channels of the first stage.
        input_frames, lead_frames: that it reads, and makes at once.
        channels: input and output channels.
        head, levels: see ``models.heads.Head``.
    """

    three_d: bool = False
    base: int = 70
    input_frames: int = 5
    lead_frames: int = 20
    channels: int = 1
    head: str = "clipped"
    levels: tuple[float, ...] = ()


class CNN(DirectNetwork):
    """Grids are padded to multiples of 120."""

    multiple = 120

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config.channels, Head(config.head, config.levels), config.input_frames, config.lead_frames)
        self.config = config
        outputs = self.output.outputs(config.channels)
        three = config.three_d
        first = config.channels if three else config.channels * config.input_frames
        self.encoder = nn.Sequential(*_stages(first, [config.base * g for g in GROWTH_DOWN], DOWN, three, up=False))
        widths = [config.base * g for g in GROWTH_UP]
        self.decoder = nn.Sequential(*_stages(config.base * GROWTH_DOWN[-1], widths, UP, three, up=True))
        if three:
            self.to_leads = nn.Conv2d(config.input_frames, config.lead_frames, 1)
            self.head: nn.Module = nn.Conv3d(config.base, outputs, 3, padding=1)
        else:
            self.head = nn.Conv2d(config.base, outputs * config.lead_frames, 3, padding=1)

    def direct(self, frames: Tensor) -> Tensor:
        """See ``DirectNetwork``."""
        if not self.config.three_d:
            raw: Tensor = self.head(self.decoder(self.encoder(frames.flatten(1, 2))))
            raw = raw.unflatten(1, (self.lead_frames, -1))
        else:
            coarse = self.encoder(frames.transpose(1, 2))  # batch, channel, time, row, column
            batch, channels = coarse.shape[:2]
            coarse = self.to_leads(coarse.flatten(0, 1)).unflatten(0, (batch, channels))
            raw = self.head(self.decoder(F.leaky_relu(coarse, SLOPE))).transpose(1, 2)
        return raw.clamp(0.0, 1.0) if self.output.kind == "clipped" else raw


def _stages(
    inputs: int, widths: list[int], shapes: tuple[tuple[int, int, int], ...], three_d: bool, up: bool
) -> list[nn.Module]:
    made: list[nn.Module] = []
    for width, (kernel, stride, padding) in zip(widths, shapes, strict=True):
        sizes = ((3, kernel, kernel), (1, stride, stride), (1, padding, padding))
        if three_d:
            kind3 = nn.ConvTranspose3d if up else nn.Conv3d
            made += [kind3(inputs, width, *sizes, bias=False), nn.BatchNorm3d(width)]
        else:
            kind2 = nn.ConvTranspose2d if up else nn.Conv2d
            made += [kind2(inputs, width, kernel, stride, padding, bias=False), nn.BatchNorm2d(width)]
        made.append(nn.LeakyReLU(SLOPE))
        inputs = width
    return made

"""U-Net over the newest frames. Source: Ronneberger et al. 2015; for radar, RainNet (Ayzel et al. 2020)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.networks.direct import DirectNetwork


@dataclass(frozen=True)
class UNetConfig:
    """Architecture.

    Attributes:
        widths: channels of each level; the grid is halved between them.
        residual: blocks add their input.
        dilated: the coarsest level looks further with dilations of 1, 2, 4 and 8.
        input_frames, lead_frames: that it reads, and makes at once.
        channels: input and output channels.
        head, levels: see ``models.heads.Head``.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    residual: bool = False
    dilated: bool = False
    input_frames: int = 5
    lead_frames: int = 12
    channels: int = 1
    head: str = "value"
    levels: tuple[float, ...] = ()


class _Block(nn.Module):
    """Convolutions with ReLU, with a way past them if ``residual``."""

    def __init__(self, inputs: int, outputs: int, residual: bool, dilations: tuple[int, ...] = (1, 1)) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * len(dilations)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=d, dilation=d)
            for a, b, d in zip(widths[:-1], widths[1:], dilations, strict=True)
        )
        self.past = nn.Conv2d(inputs, outputs, 1) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        past = None if self.past is None else self.past(x)
        for n, convolution in enumerate(self.convolutions):
            last = n == len(self.convolutions) - 1
            x = convolution(x)
            x = F.relu(x + past if last and past is not None else x)
        return x


class UNet(DirectNetwork):
    """Grids are padded to multiples of 2 ** (levels - 1)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config.channels, Head(config.head, config.levels), config.input_frames, config.lead_frames)
        self.config = config
        widths, residual = config.widths, config.residual
        self.multiple = 2 ** (len(widths) - 1)
        inputs = (config.channels * config.input_frames, *widths[:-1])
        self.down = nn.ModuleList(_Block(a, b, residual) for a, b in zip(inputs[:-1], widths[:-1], strict=True))
        self.coarsest = _Block(inputs[-1], widths[-1], residual, (1, 2, 4, 8) if config.dilated else (1, 1))
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(widths[1:], widths[:-1], strict=True)
        )
        self.up = nn.ModuleList(_Block(2 * w, w, residual) for w in widths[:-1])
        self.head = nn.Conv2d(widths[0], config.lead_frames * self.output.outputs(config.channels), 1)

    def influence(self, frames: int, leads: int) -> int:
        """See ``Network``: convolutions of all levels, each pixel of a level being 2 ** level wide."""
        coarsest = len(self.config.widths) - 1
        fine = sum((2 * 2 + 2) * 2**n for n in range(coarsest))  # two blocks, pooling and widening
        deep = (15 if self.config.dilated else 2) * 2**coarsest
        return -(-leads // self.lead_frames) * (fine + deep)

    def direct(self, frames: Tensor) -> Tensor:
        """See ``DirectNetwork``."""
        x, kept = frames.flatten(1, 2), []
        for block in self.down:
            kept.append(block(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.coarsest(x)
        for widen, block, past in zip(reversed(self.widen), reversed(self.up), reversed(kept), strict=True):
            x = block(torch.cat((widen(x), past), dim=1))
        raw: Tensor = self.head(x).unflatten(1, (self.lead_frames, -1))
        return raw.clamp(0.0, 1.0) if self.output.kind == "clipped" else raw

"""ConvGRU and TrajGRU encoder-forecasters with strides. Source: Shi et al. 2017 (HKO-7, MovingMNIST++).

The encoder halves the grid stage by stage; the forecaster starts at the coarsest state and has no input of its own,
so it never feeds on its output.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.layers.conv_gru import SLOPE, ConvGRUCell, GRUCell
from models.layers.traj_gru import TrajGRUCell
from models.networks.network import Feed, Network


@dataclass(frozen=True)
class StridedGRUConfig:
    """Architecture, finest stage first.

    Attributes:
        down: channels, kernel and stride of the convolution into each stage; padding is 1.
        up_kernels: of the transposed convolution out of each stage, with the stride and channels of ``down``.
        widths: hidden channels of each stage.
        links: TrajGRU with so many links in each stage; empty means ConvGRU.
        kernels, dilations: of the ConvGRU's state-to-state convolutions.
        channels: of pixels; coordinates and a constant are added inside.
        head, levels: see ``models.heads.Head``.
    """

    down: tuple[tuple[int, int, int], ...] = ((8, 7, 5), (192, 5, 3), (192, 3, 2))
    up_kernels: tuple[int, ...] = (7, 5, 4)
    widths: tuple[int, ...] = (64, 192, 192)
    links: tuple[int, ...] = ()
    kernels: tuple[int, ...] = (5, 5, 3)
    dilations: tuple[int, ...] = (1, 1, 1)
    channels: int = 1
    head: str = "value"
    levels: tuple[float, ...] = ()


class StridedGRU(Network):
    """Any number of frames and leads, any grid (padded to the product of the strides)."""

    def __init__(self, config: StridedGRUConfig) -> None:
        super().__init__(config.channels, Head(config.head, config.levels))
        self.config = config
        stages = range(len(config.widths))
        strides = [stride for _, _, stride in config.down]
        for stride in strides:
            self.multiple *= stride

        def cell(n: int, inputs: int) -> GRUCell:
            if config.links:
                return TrajGRUCell(inputs, config.widths[n], config.links[n])
            return ConvGRUCell(inputs, config.widths[n], config.kernels[n], dilation=config.dilations[n])

        inputs = [config.channels + 3, *config.widths[:-1]]
        self.down = nn.ModuleList(
            nn.Conv2d(i, c, k, s, padding=1) for i, (c, k, s) in zip(inputs, config.down, strict=True)
        )
        self.encoder = nn.ModuleList(cell(n, config.down[n][0]) for n in stages)
        above = [*config.widths[1:], 0]
        self.forecaster = nn.ModuleList(cell(n, above[n]) for n in stages)
        outputs = [config.down[0][0], *config.widths[1:]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(config.widths[n], outputs[n], config.up_kernels[n], strides[n], padding=1, bias=False)
            for n in stages
        )
        first = config.down[0][0]
        self.smooth = nn.Conv2d(first, first, 3, padding=1)
        self.head = nn.Conv2d(first, self.output.outputs(config.channels), 1)
        for module in (*self.down, *self.up, self.smooth):
            nn.init.kaiming_normal_(module.weight, a=SLOPE, nonlinearity="leaky_relu")  # type: ignore[arg-type]

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``."""
        batch, time = frames.shape[:2]
        xs = torch.cat((frames, _coordinates(frames)), dim=2).flatten(0, 1)
        states = []
        for down, cell in zip(self.down, self.encoder, strict=True):  # the strided convolutions see all times at once
            xs = F.leaky_relu(down(xs), SLOPE).unflatten(0, (batch, time))
            state = frames.new_zeros((batch, cell.hidden, *xs.shape[-2:]))  # type: ignore[arg-type]
            hidden = []
            for t in range(time):
                state = cell(xs[:, t], state)
                hidden.append(state)
            states.append(state)
            xs = torch.stack(hidden, dim=1).flatten(0, 1)
        hs: list[Tensor | None] = [None] * leads
        for n in reversed(range(len(states))):
            state, made = states[n], []
            for x in hs:
                state = self.forecaster[n](x, state)
                made.append(state)
            up = F.leaky_relu(self.up[n](torch.stack(made, dim=1).flatten(0, 1)), SLOPE)
            hs = list(up.unflatten(0, (batch, leads)).unbind(dim=1))
        raw: Tensor = self.head(F.leaky_relu(self.smooth(up), SLOPE))
        return raw.unflatten(0, (batch, leads))


def _coordinates(frames: Tensor) -> Tensor:
    """Columns and rows from -1 to 1, and ones, as channels beside the frames."""
    batch, time, _, height, width = frames.shape
    x = torch.linspace(-1, 1, width, device=frames.device, dtype=frames.dtype).expand(height, width)
    y = torch.linspace(-1, 1, height, device=frames.device, dtype=frames.dtype).unsqueeze(1).expand(height, width)
    return torch.stack((x, y, torch.ones_like(x))).expand(batch, time, 3, height, width)

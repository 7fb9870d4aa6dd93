"""FC-LSTM encoder-forecaster: frames as vectors. Source: Wu 2019, after Srivastava et al. 2015.

One stack of layers is shared by encoder and forecaster: the parameter counts of the thesis equal that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.heads import Head
from models.networks.network import Feed, Network


@dataclass(frozen=True)
class FCLSTMConfig:
    """Architecture.

    Attributes:
        height, width: of the only grid that it can forecast.
        widths: units of each layer.
        channels: input and output channels.
        head, levels: see ``models.heads.Head``.
    """

    height: int = 64
    width: int = 64
    widths: tuple[int, ...] = (2048, 2048)
    channels: int = 1
    head: str = "value"
    levels: tuple[float, ...] = ()


class FCLSTM(Network):
    """Any number of frames and leads, on one grid."""

    takes_teacher = True

    def __init__(self, config: FCLSTMConfig) -> None:
        super().__init__(config.channels, Head(config.head, config.levels))
        self.config = config
        pixels = config.height * config.width
        inputs = (pixels * config.channels, *config.widths[:-1])
        self.from_input = nn.ModuleList(nn.Linear(i, 4 * h) for i, h in zip(inputs, config.widths, strict=True))
        self.from_state = nn.ModuleList(nn.Linear(h, 4 * h, bias=False) for h in config.widths)
        self.to_pixels = nn.Linear(config.widths[-1], pixels * self.output.outputs(config.channels))
        for inward, own, hidden in zip(self.from_input, self.from_state, config.widths, strict=True):
            nn.init.xavier_uniform_(inward.weight)  # type: ignore[arg-type]
            nn.init.orthogonal_(own.weight)  # type: ignore[arg-type]
            with torch.no_grad():
                inward.bias.zero_()  # type: ignore[operator]
                inward.bias[hidden : 2 * hidden] = 1.0  # type: ignore[index,operator]

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``.

        Raises:
            ValueError: the grid is not the one it was built for.
        """
        batch, _, _, height, width = frames.shape
        if (height, width) != (self.config.height, self.config.width):
            grid = f"{self.config.height} x {self.config.width}"
            raise ValueError(f"this FC-LSTM was built for grids of {grid}, got {height} x {width}")
        zeros = [frames.new_zeros((batch, h)) for h in self.config.widths]
        states = list(zip(zeros, zeros, strict=True))
        for x in frames.unbind(dim=1):
            self._step(x, states)
        x, outputs = torch.zeros_like(frames[:, 0]), []
        for k in range(leads):
            raw: Tensor = self.to_pixels(self._step(x, states))
            outputs.append(raw.view(batch, -1, height, width))
            x = feed(self.output.values(outputs[-1]), k)
        return torch.stack(outputs, dim=1)

    def _step(self, x: Tensor, states: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = x.flatten(1)
        for n, (h, c) in enumerate(states):
            i, f, o, g = (self.from_input[n](x) + self.from_state[n](h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(c)
            states[n] = (x, c)
        return x

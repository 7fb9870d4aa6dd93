"""ConvLSTM encoder-forecaster.

Source: Wu 2019 (1, 2 or 3 layers, separate encoder and forecaster weights, states copied layer to
layer, own last output as the next input) after Shi et al. 2015, whose space-to-depth patches are the
``patch`` option: motion of several pixels a frame fits a 3x3 kernel, at 1/patch^2 of the cost.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import Prediction
from models.layers.conv_lstm import ConvLSTMCell, State


@dataclass(frozen=True)
class EncoderForecasterConfig:
    """Architecture of one encoder-forecaster.

    Attributes:
        widths: hidden channels per layer, input side first.
        kernel: odd size of the gate convolutions.
        head_width: width of the (1, n) output convolution; 1 is the text of Wu 2019, larger values its code.
        patch: side of the space-to-depth patches; 1 works on single pixels.
        channels: input and output channels.
        peepholes: gates also look at the cell state (Shi et al. 2015).
    """

    widths: tuple[int, ...] = (64, 32, 32)
    kernel: int = 3
    head_width: int = 1
    patch: int = 1
    channels: int = 1
    peepholes: bool = False


class EncoderForecaster(nn.Module):
    """Encoder reads J frames, forecaster writes K frames; any J, K, height and width."""

    def __init__(self, config: EncoderForecasterConfig) -> None:
        super().__init__()
        self.config = config
        depth = config.channels * config.patch**2
        inputs = (depth, *config.widths[:-1])

        def stack() -> nn.ModuleList:
            return nn.ModuleList(
                ConvLSTMCell(i, h, config.kernel, peepholes=config.peepholes)
                for i, h in zip(inputs, config.widths, strict=True)
            )

        self.encoder = stack()
        self.forecaster = stack()
        left = (config.head_width - 1) // 2
        self.head = nn.Sequential(
            nn.ZeroPad2d((left, config.head_width - 1 - left, 0, 0)),  # "same", also for even widths
            nn.Conv2d(config.widths[-1], depth, (1, config.head_width)),
        )

    def forward(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``. Cells not observed enter as no echo; nothing is flagged as inflow."""
        values = self.roll_out(frames, leads).clamp(0.0, 1.0)
        extrapolated = torch.zeros_like(values[:, :, :1], dtype=torch.bool)
        return Prediction(values, extrapolated)

    def roll_out(self, frames: Tensor, leads: int, teacher: Tensor | None = None) -> Tensor:
        """Forecast without clipping, for the loss.

        Args:
            frames: (batch, time, channel, height, width), 0-1.
            leads: frames to forecast.
            teacher: (batch, leads, channel, height, width) true frames fed instead of the own output
                (Wu's training); None feeds the own, clipped output (Wu's inference).

        Returns:
            (batch, leads, channel, height, width), unclipped.
        """
        height, width = frames.shape[-2:]
        patch = self.config.patch
        padding = (0, -width % patch, 0, -height % patch)

        def to_patches(frame: Tensor) -> Tensor:
            return F.pixel_unshuffle(F.pad(frame, padding), patch)

        x = to_patches(frames[:, 0])
        states: list[State] = [cell.zero_state(x) for cell in self._cells(self.encoder)]
        for t in range(frames.shape[1]):
            self._step(self.encoder, to_patches(frames[:, t]), states)
        x = torch.zeros_like(x)
        outputs = []
        for k in range(leads):
            out = self.head(self._step(self.forecaster, x, states))
            outputs.append(F.pixel_shuffle(out, patch)[..., :height, :width])
            x = out.clamp(0.0, 1.0) if teacher is None else to_patches(teacher[:, k])
        return torch.stack(outputs, dim=1)

    @staticmethod
    def _cells(stack: nn.ModuleList) -> list[ConvLSTMCell]:
        return [cell for cell in stack if isinstance(cell, ConvLSTMCell)]

    def _step(self, stack: nn.ModuleList, x: Tensor, states: list[State]) -> Tensor:
        """Advance every layer once, in place in ``states``; return the top hidden state."""
        for n, cell in enumerate(self._cells(stack)):
            states[n] = cell(x, states[n])
            x = states[n][0]
        return x

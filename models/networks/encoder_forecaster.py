"""ConvLSTM encoder-forecaster.

Source: Wu 2019 (1, 2 or 3 layers, separate encoder and forecaster weights, states copied layer to
layer, own last output as the next input) after Shi et al. 2015, whose space-to-depth patches are the
``patch`` option: motion of several pixels a frame fits a 3x3 kernel, at 1/patch^2 of the cost.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.layers.attention import TemporalAttention
from models.layers.conv_lstm import ConvLSTMCell, State
from models.networks.network import Feed, Network


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
        attention: the forecaster attends to the encoder's past, against blur (the next step named by Wu 2019).
        head, levels: see ``models.heads.Head``.
        from_newest: every output is a correction of the frame before it, the newest one first, and at first none: for
            the moving frame, where persistence is a good guess.
    """

    widths: tuple[int, ...] = (64, 32, 32)
    kernel: int = 3
    head_width: int = 1
    patch: int = 1
    channels: int = 1
    peepholes: bool = False
    attention: bool = False
    head: str = "value"
    levels: tuple[float, ...] = ()
    from_newest: bool = False


class EncoderForecaster(Network):
    """Encoder reads J frames, forecaster writes K frames; any J, K, height and width.

    Raises:
        ValueError: corrections of a frame that the head does not describe by values or by ordinal levels.
    """

    takes_teacher = True

    def __init__(self, config: EncoderForecasterConfig) -> None:
        super().__init__(config.channels, Head(config.head, config.levels))
        self.config = config
        self.multiple = config.patch
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
        outputs = self.output.outputs(config.channels) * config.patch**2
        self.head = nn.Sequential(
            nn.ZeroPad2d((left, config.head_width - 1 - left, 0, 0)),  # "same", also for even widths
            nn.Conv2d(config.widths[-1], outputs, (1, config.head_width)),
        )
        self.attention = TemporalAttention(config.widths[-1]) if config.attention else None
        if config.from_newest:
            if config.head not in {"value", "ordinal"}:
                raise ValueError(f"from_newest needs a head of values or ordinal levels, got {config.head!r}")
            if self.output.logits:  # how steeply the chance of a level rises with the value
                self.slope = nn.Parameter(torch.full((self.output.logits, 1, 1), 20.0))
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def influence(self, frames: int, leads: int) -> int:
        """See ``Network``: every layer of every step looks half a kernel further, the output half its width."""
        config = self.config
        step = len(config.widths) * (config.kernel // 2)
        return config.patch * ((frames + leads) * step + leads * (config.head_width // 2) + 1)

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``."""
        past, states = self._encode(self._to_patches(frames))
        memory = None if self.attention is None else self.attention.remember(past)
        # the forecaster starts on an empty frame, or on the one to correct
        first = frames[:, -1] if self.config.from_newest else torch.zeros_like(frames[:, 0])
        known = feed.known
        if known is not None:
            fed = torch.cat((first.unsqueeze(1), known[:, : leads - 1]), dim=1)
            xs = self._to_patches(fed)
            for cell, state in zip(self._cells(self.forecaster), states, strict=True):
                xs = cell.scan(xs, state)[0]
            return torch.stack([self._read(h, memory, x) for h, x in zip(xs, fed.unbind(dim=1), strict=True)], dim=1)
        x, outputs = first, []
        for k in range(leads):
            h = self._step(self.forecaster, F.pixel_unshuffle(x, self.config.patch), states)
            outputs.append(self._read(h, memory, x))
            x = feed(self.output.values(outputs[-1]), k)
        return torch.stack(outputs, dim=1)

    def _encode(self, xs: Tensor) -> tuple[Tensor, list[State]]:
        """Hidden states of the top layer at all times (only if attention wants them), last states of all layers."""
        cells = self._cells(self.encoder)
        if torch.is_grad_enabled():  # layer by layer: one node of the graph for each
            states = []
            for cell in cells:
                xs, state = cell.scan(xs)
                states.append(state)
            return xs, states
        states, past = [cell.zero_state(xs[0]) for cell in cells], []
        for x in xs:
            h = self._step(self.encoder, x, states)
            past += [h.clone()] if self.attention is not None else []
        return torch.stack(past) if past else xs, states

    def _to_patches(self, frames: Tensor) -> Tensor:
        """(batch, time, channel, height, width) -> (time, batch, depth, height / patch, width / patch)."""
        return F.pixel_unshuffle(frames.transpose(0, 1), self.config.patch)

    def _read(self, h: Tensor, memory: tuple[Tensor, Tensor] | None, fed: Tensor) -> Tensor:
        if self.attention is not None and memory is not None:
            h = self.attention(h, memory)
        made = F.pixel_shuffle(self.head(h), self.config.patch)
        if not self.config.from_newest:
            return made
        if not self.output.logits:
            return fed + made
        levels = torch.tensor(self.output.levels, device=fed.device).view(-1, 1, 1)
        return made + torch.cat((self.slope * (fed[:, :1] - levels), fed), dim=1)

    @staticmethod
    def _cells(stack: nn.ModuleList) -> list[ConvLSTMCell]:
        return [cell for cell in stack if isinstance(cell, ConvLSTMCell)]

    def _step(self, stack: nn.ModuleList, x: Tensor, states: list[State]) -> Tensor:
        """Advance every layer once, in place in ``states``; return the top hidden state."""
        for n, cell in enumerate(self._cells(stack)):
            states[n] = cell(x, states[n])
            x = states[n].h
        return x

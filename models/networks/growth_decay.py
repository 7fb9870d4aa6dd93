"""Growth, decay and doubt of rain that is looked at along its motion: a small U-Net that corrects the newest frame.

The frames come in the moving frame (``models.moving_frame``), in which rain that only moves stands still. So
persistence, ever more smoothed with lead time, is the first guess, and the network starts as that: its last layer is
zero. After the Lagrangian network of Ritvanen et al. (2023), with other layers, inputs and outputs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.baselines.motion import blur
from models.heads import Head
from models.networks.network import Feed, Network


@dataclass(frozen=True)
class GrowthDecayConfig:
    """Architecture.

    Attributes:
        widths: channels of each level; the first works on every second cell, the grid is halved between them.
        blurs: standard deviations, in cells, of the smoothed newest frames that inputs and first guess are made of.
        input_frames, lead_frames: that it reads, and makes at once.
        levels: pixel values (0-1) whose exceedance it gives; the mean comes beside them.
    """

    widths: tuple[int, ...] = (16, 32, 64, 96)
    blurs: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    input_frames: int = 3
    lead_frames: int = 12
    levels: tuple[float, ...] = ()


class GrowthDecayNet(Network):
    """All leads at once, from the newest frames and where they were observed."""

    sees_coverage = True
    picks_leads = True

    def __init__(self, config: GrowthDecayConfig) -> None:
        super().__init__(1, Head("ordinal", config.levels))
        if len(config.widths) < 2 or min(config.input_frames, config.lead_frames) < 1:
            raise ValueError("there must be two levels, one input frame and one lead frame at least")
        self.config = config
        self.min_frames, self.lead_frames = config.input_frames, config.lead_frames
        self.multiple = 2 ** len(config.widths)
        widths, count, leads = config.widths, self.output.logits, config.lead_frames
        inputs = (config.input_frames + 1 + len(config.blurs), *widths[:-1])
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(inputs, widths, strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[1:], widths[:-1], strict=True))
        self.up = nn.ModuleList(_block(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], leads * (count + 1), 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        # of each lead: how much it is smoothed, and how steeply the chance of a level rises with the rain around it
        smoothing = torch.tensor((0.0, *config.blurs)) + 0.5
        wanted = 0.4 * torch.arange(1, leads + 1) + 0.5
        self.mix = nn.Parameter(-2 * (smoothing.log() - wanted.log()[:, None]).abs())
        self.slope = nn.Parameter((25 / (1 + 0.25 * torch.arange(leads)))[:, None].repeat(1, count))
        self.offset = nn.Parameter(torch.zeros(leads, count))

    def influence(self, frames: int, leads: int) -> int:
        """See ``Network``: the widest blur, two convolutions a block on the way down and up, and the pools between."""
        strides = [2 ** (n + 1) for n in range(len(self.config.widths))]
        blocks = 2 * sum(strides) + 2 * sum(strides[:-1])
        return blocks + 2 * strides[-1] + round(2.5 * max(self.config.blurs))

    def unroll(self, frames: Tensor, leads: int, feed: Feed) -> Tensor:
        """See ``Network.roll_out``; there are ``lead_frames`` leads, and the last of them stands for later ones."""
        newest = frames[:, -self.min_frames :, 0]
        seen = torch.ones_like(newest[:, -1:]) if feed.observed is None else feed.observed[:, -1]
        last = newest[:, -1:]
        smooth = torch.cat([last, *(blur(last, s) / blur(seen, s).clamp_min(0.05) for s in self.config.blurs)], dim=1)
        correction = self._correction(torch.cat((newest, seen, smooth[:, 1:]), dim=1), self._leads(leads, feed))
        picked = self._leads(leads, feed)
        guess = torch.einsum("ks,bshw->bkhw", self.mix.softmax(dim=1)[picked], smooth).unsqueeze(2)
        levels = torch.tensor(self.output.levels, device=frames.device).view(-1, 1, 1)
        slope, offset = (p[picked][:, :, None, None] for p in (self.slope, self.offset))
        count = self.output.logits
        logits = slope * (guess - levels) + offset + correction[:, :, :count]
        return torch.cat((logits, guess + 0.1 * correction[:, :, count:]), dim=2)

    def _leads(self, leads: int, feed: Feed) -> list[int]:
        wanted = range(leads) if feed.picked is None else feed.picked
        return [min(k, self.lead_frames - 1) for k in wanted]

    def _correction(self, x: Tensor, picked: list[int]) -> Tensor:
        """(batch, leads, levels + 1, height, width), smooth in space: made on every second cell."""
        x, kept = F.avg_pool2d(x, 2), []
        for n, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if n else x)
            kept.append(x)
        for narrow, block, past in zip(reversed(self.narrow), reversed(self.up), reversed(kept[:-1]), strict=True):
            x = block(torch.cat((F.interpolate(narrow(x), scale_factor=2.0), past), dim=1))
        each = self.output.logits + 1
        weight = self.head.weight.unflatten(0, (self.lead_frames, each))[picked].flatten(0, 1)
        assert self.head.bias is not None
        made = F.conv2d(x, weight, self.head.bias.unflatten(0, (self.lead_frames, each))[picked].flatten())
        fine = F.interpolate(made, scale_factor=2.0, mode="bilinear", align_corners=False)
        return fine.unflatten(1, (len(picked), each))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.LeakyReLU(0.1),
    )  # fmt: skip

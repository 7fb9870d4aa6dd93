"""Dynamic convolution (DC) network: a small network says how each part of the image moves and spreads.

Source: Klein, Wolf and Afek 2015. From each 70 x 70 patch of the newest frames the sub-network makes a vertical and a
horizontal softmax filter of 41 taps; the last frame is convolved with both, of which the centre 10 x 10 is kept. Here
the sub-network is a convolution with a stride of 10 and a view of 70 pixels, so that a large image gives the filters
of all its patches in one pass; what is known of the paper says nothing of the layers in between.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.dynamic_conv import separable_convolution
from models.networks.one_step import OneStepNetwork

TILE = 10  # pixels between two filters
VIEW = 70  # pixels that a filter is made from
MARGIN = (VIEW - TILE) // 2
STILL = 6.0  # logit of the middle tap of a filter that starts still; that of 21 taps keeps 0.95 in its place


@dataclass(frozen=True)
class DynamicConvConfig:
    """Architecture.

    Attributes:
        input_frames: newest frames that the sub-network looks at.
        taps: odd length of the filters, at most 51; rain moves by at most ``taps // 2`` pixels a frame.
        widths: channels of the sub-network.
        blend: mix the results of neighbouring filters, so that no seams show; False is the paper's patches.
        channels: input and output channels, which share the filters.
        from_newest: filters start as those that leave the newest frame nearly as it is: for the moving frame.
    """

    input_frames: int = 4
    taps: int = 41
    widths: tuple[int, int, int, int] = (32, 32, 64, 128)
    blend: bool = True
    channels: int = 1
    from_newest: bool = False


class DynamicConvNet(OneStepNetwork):
    """One lead at a time. A mean of input pixels: it moves and spreads rain, it cannot make it."""

    def __init__(self, config: DynamicConvConfig) -> None:
        super().__init__(config.channels, config.input_frames)
        if config.taps % 2 == 0 or not 1 <= config.taps <= VIEW - TILE - 2 * (TILE // 2) + 1:
            raise ValueError(f"taps must be odd and at most {VIEW - 2 * TILE + 1}, got {config.taps}")
        self.config = config
        self.multiple = TILE
        self.reach = config.taps // 2
        a, b, c, d = config.widths
        slope = 0.1
        self.filters = nn.Sequential(  # views of 6, 12, 20, 70 pixels; strides of 2, 2, 10, 10
            nn.Conv2d(config.input_frames * config.channels, a, 6, stride=2), nn.LeakyReLU(slope),
            nn.Conv2d(a, b, 4), nn.LeakyReLU(slope),
            nn.Conv2d(b, c, 5, stride=5), nn.LeakyReLU(slope),
            nn.Conv2d(c, d, 6), nn.LeakyReLU(slope),
            nn.Conv2d(d, 2 * config.taps, 1),
        )  # fmt: skip
        if config.from_newest:
            taps = self.filters[-1]
            nn.init.zeros_(taps.weight)  # type: ignore[arg-type]
            middle = torch.arange(2 * config.taps) % config.taps == config.taps // 2
            taps.bias.data.copy_(STILL * middle)  # type: ignore[operator,union-attr]

    def influence(self, frames: int, leads: int) -> int:
        """See ``Network``: a pixel goes as far as a filter reaches, or decides a filter that serves another tile."""
        return leads * max(self.reach, MARGIN + 2 * TILE)

    def step(self, frames: Tensor) -> Tensor:
        """See ``OneStepNetwork``."""
        height, width = frames.shape[-2:]
        padded = F.pad(frames.flatten(1, 2), (MARGIN, MARGIN, MARGIN, MARGIN))
        last = padded[:, -self.channels :]
        logits = self.filters(padded).to(last.dtype)
        vertical, horizontal = (
            F.softmax(half, dim=1).permute(0, 2, 3, 1) for half in logits.split(self.config.taps, dim=1)
        )
        # a filter serves its tile, or twice as much, fading away from the middle
        size = 2 * TILE if self.config.blend else TILE
        extent = size + self.config.taps - 1
        first = MARGIN - (size - TILE) // 2 - self.config.taps // 2
        rows = []
        for r in range(height // TILE):  # row by row: all patches at once would be 36 times the image
            top = first + r * TILE
            strip = last[:, :, top : top + extent, first : first + extent + width - TILE]
            patches = strip.unfold(3, extent, TILE).permute(0, 3, 1, 2, 4)
            rows.append(separable_convolution(patches, vertical[:, r], horizontal[:, r]))
        tiles = torch.stack(rows, dim=1).permute(0, 3, 1, 4, 2, 5)  # batch, channel, row, size, column, size
        if not self.config.blend:
            return tiles.reshape(*last.shape[:2], height, width)
        return _blended(tiles, height, width)


def _blended(tiles: Tensor, height: int, width: int) -> Tensor:
    """Overlapping tiles (batch, channel, row, 2 TILE, column, 2 TILE), faded linearly into each other."""
    fade = 1 - (torch.arange(2 * TILE, device=tiles.device, dtype=tiles.dtype) - (TILE - 0.5)).abs() / TILE

    def joined(parts: Tensor, dim: int, size: int) -> Tensor:
        """Sum of overlapping parts along ``dim``, over the sum of their weights (less than 1 at the edges)."""
        shape = [1] * parts.ndim
        shape[dim + 1] = 2 * TILE
        weight = fade.view(shape)

        def laid(values: Tensor) -> Tensor:
            early, late = values.split(TILE, dim=dim + 1)
            gap = torch.zeros_like(early.narrow(dim, 0, 1))
            return (torch.cat((early, gap), dim) + torch.cat((gap, late), dim)).flatten(dim, dim + 1)

        whole = laid(parts * weight) / laid(torch.ones_like(parts[:1, :1]) * weight)
        return whole.narrow(dim, TILE // 2, size)

    return joined(joined(tiles, 4, width), 2, height)

"""Network that estimates motion and diffusion, then moves the last frame. Source: de Bezenac et al. 2018."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.advection_diffusion import advect_diffuse
from models.networks.one_step import OneStepNetwork

SLOPE = 0.1
LEAST = 0.02  # diffusivity (pixels squared a frame): below, the Gaussian is narrower than a pixel's grid can show


@dataclass(frozen=True)
class AdvectionDiffusionConfig:
    """Architecture.

    Attributes:
        input_frames: newest frames that the motion is estimated from.
        widths: channels of each level of the estimator; the grid is halved before each.
        channels: input and output channels, which share the motion.
    """

    input_frames: int = 4
    widths: tuple[int, ...] = (64, 128, 256, 512)
    channels: int = 1


class AdvectionDiffusionNet(OneStepNetwork):
    """One lead at a time. A mean of input pixels: it moves and spreads rain, it cannot make it."""

    def __init__(self, config: AdvectionDiffusionConfig) -> None:
        super().__init__(config.channels, config.input_frames)
        self.config = config
        self.multiple = 2 ** len(config.widths)
        inputs = (config.channels * config.input_frames, *config.widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(inputs, config.widths, strict=True)
        )
        levels = list(zip(config.widths[1:], config.widths[:-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in reversed(levels))
        self.to_motion = nn.ConvTranspose2d(config.widths[0], 3, 4, stride=2, padding=1)
        nn.init.zeros_(self.to_motion.weight)  # begins as "nothing moves"
        nn.init.zeros_(self.to_motion.bias)  # type: ignore[arg-type]

    def step(self, frames: Tensor) -> Tensor:
        """See ``OneStepNetwork``."""
        motion, diffusivity = self.estimate(frames)
        return advect_diffuse(frames[:, -1], motion, diffusivity)

    def estimate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Motion (batch, 2, height, width) in pixels a frame, and diffusivity (batch, 1, height, width)."""
        x, kept = frames.flatten(1, 2), []
        for down in self.down:
            x = F.leaky_relu(down(x), SLOPE)
            kept.append(x)
        for up, past in zip(self.up, reversed(kept[:-1]), strict=True):
            x = F.leaky_relu(up(x), SLOPE) + past
        made = self.to_motion(x).to(torch.promote_types(frames.dtype, torch.float32))
        # about 0.1 at the start: hardly wider than the pixel
        return made[:, :2], F.softplus(made[:, 2:] - 2.25) + LEAST

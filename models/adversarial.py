"""Adversarial term against blur: a discriminator learns to tell forecasts from rain.

Sources: Goodfellow et al. 2014, Mathieu et al. 2016.
"""

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Says for each patch of a sequence whether it is real: (batch, time, channel, height, width) -> logits.

    The frames are channels, so that motion is judged too; each logit sees 46 x 46 pixels.
    """

    def __init__(self, frames: int, channels: int, width: int = 32) -> None:
        super().__init__()
        widths = (frames * channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, sequence: Tensor) -> Tensor:
        """Logits (batch, 1, about height / 8, about width / 8)."""
        made: Tensor = self.layers(sequence.flatten(1, 2))
        return made


class Adversary:
    """The discriminator with its optimiser.

    Args:
        frames: input and lead frames together.
        learning_rate: of its Adam (beta1 0.5, as is usual in adversarial training).
    """

    def __init__(self, frames: int, channels: int, learning_rate: float, device: torch.device) -> None:
        self.network = Discriminator(frames, channels).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.5, 0.999))

    def of_forecast(self, past: Tensor, made: Tensor, observed: Tensor) -> Tensor:
        """What the forecaster adds to its loss: low where the discriminator takes the forecast for rain."""
        logits = self.network(torch.cat((past, made * observed), dim=1))
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def learn(self, past: Tensor, made: Tensor, true: Tensor, observed: Tensor) -> float:
        """One step of the discriminator on a real and a forecast sequence, seen through the same mask."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for sequence, real in ((true, True), (made.detach(), False)):
            logits = self.network(torch.cat((past, sequence * observed), dim=1))
            losses.append(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real))))
        loss = torch.stack(losses).mean()
        loss.backward()
        if dist.is_initialized():
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
                    parameter.grad /= dist.get_world_size()
        self.optimizer.step()
        return loss.item()

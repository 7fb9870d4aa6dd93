"""Attention of a forecaster over the encoder's past, per pixel. Source of the idea: Bahdanau et al. 2015."""

import torch
from torch import Tensor, nn


class TemporalAttention(nn.Module):
    """Adds to a hidden state what is of use in the hidden states of all input times, by 1x1 convolutions.

    Starts as the identity (the last convolution is zero), so it can be added to a trained network.

    Args:
        hidden: channels of the states.
        depth: channels of queries and keys.
    """

    def __init__(self, hidden: int, depth: int = 16) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(hidden, depth, 1), nn.Conv2d(hidden, depth, 1)
        self.value, self.mix = nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, hidden, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def remember(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (time, batch, channel, height, width), of the encoder's hidden states."""
        size = past.shape[:2]
        return self.key(past.flatten(0, 1)).unflatten(0, size), self.value(past.flatten(0, 1)).unflatten(0, size)

    def forward(self, h: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """``h`` (batch, hidden, height, width) with what it attends to."""
        keys, values = memory
        score = (self.query(h) * keys).sum(dim=2, keepdim=True) / keys.shape[2] ** 0.5
        mixed: Tensor = self.mix((torch.softmax(score, dim=0) * values).sum(dim=0))
        return h + mixed

"""TrajGRU cell: a GRU whose state is sampled along learnt flows. Source: Shi et al. 2017, equation 4."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.conv_gru import SLOPE, GRUCell
from models.layers.warp import pixel_grid

FLOW_CHANNELS = 32


class TrajGRUCell(GRUCell):
    """State to state along ``links`` flows: sampled at displaced places, bilinear, zero outside, then mixed per pixel.

    The flows start at zero.
    """

    def __init__(self, inputs: int, hidden: int, links: int) -> None:
        super().__init__(inputs, hidden)
        self.links = links
        self.flow_from_input = nn.Conv2d(inputs, FLOW_CHANNELS, 5, padding=2) if inputs else None
        self.flow_from_state = nn.Conv2d(hidden, FLOW_CHANNELS, 5, padding=2)
        self.flows = nn.Conv2d(FLOW_CHANNELS, 2 * links, 5, padding=2)
        nn.init.zeros_(self.flows.weight)
        nn.init.zeros_(self.flows.bias)  # type: ignore[arg-type]
        self.mix = nn.Conv2d(hidden * links, 3 * hidden, 1)

    def of_state(self, x: Tensor | None, state: Tensor) -> Tensor:
        """See ``GRUCell``."""
        flow = self.flow_from_state(state)
        if self.flow_from_input is not None and x is not None:
            flow = flow + self.flow_from_input(x)
        flow = self.flows(F.leaky_relu(flow, SLOPE))
        batch, _, height, width = state.shape
        position = pixel_grid(state) - flow.to(torch.promote_types(flow.dtype, torch.float32)).unflatten(
            1, (self.links, 2)
        ).flatten(0, 1)
        warped = sample_links(state, position.unflatten(0, (batch, self.links)))
        if batch < 16 and warped.device.type == "cpu":
            # 1x1 convolutions of a few samples leave the fast kernels; rows are samples as good as any
            rows = warped.reshape(batch * height, 1, width, -1).permute(0, 3, 1, 2)
            return self.mix(rows).unflatten(0, (batch, height)).squeeze(3).transpose(1, 2)
        return self.mix(warped.permute(0, 3, 1, 2))


def sample_links(state: Tensor, position: Tensor) -> Tensor:
    """Bilinear values at the places of every link, zero outside.

    Each place is a weighted sum of four rows of the state with its channels last: one gather for all links, in the
    order in which the 1x1 convolution reads them.

    Args:
        state: (batch, channel, height, width).
        position: (batch, link, 2, height, width) columns and rows, in pixels.

    Returns:
        (batch, height, width, link * channel).
    """
    batch, channels, height, width = state.shape
    x, y = position.permute(2, 0, 3, 4, 1)  # each batch, height, width, link
    left, top = x.floor(), y.floor()
    right, below = x - left, y - top
    first = (torch.arange(batch, device=state.device) * (height * width)).view(-1, 1, 1, 1)
    places, weights = [], []
    for row, down in ((top, 1 - below), (top + 1, below)):
        for column, across in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            places.append(first + place)
            weights.append(torch.where(inside, down * across, 0.0))
    table = state.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    bags, shares = torch.stack(places, dim=-1).view(-1, 4), torch.stack(weights, dim=-1).view(-1, 4)
    made = F.embedding_bag(bags, table, per_sample_weights=shares.to(table.dtype), mode="sum")
    return made.view(batch, height, width, -1)

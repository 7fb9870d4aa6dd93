"""TrajGRU cell: a GRU whose state is sampled along learnt flows. Source: Shi et al. 2017, equation 4."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.conv_gru import SLOPE, GRUCell
from models.layers.warp import pixel_grid, sampling_grid

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
        # one sampling for all links, which lie below each other on a tall grid; positions need float32
        position = pixel_grid(state) - flow.float().view(batch * self.links, 2, height, width)
        grid = sampling_grid(position, height, width).view(batch, self.links * height, width, 2)
        warped = F.grid_sample(
            state, grid.to(state.dtype), mode="bilinear", padding_mode="zeros", align_corners=True
        ).view(batch, self.hidden, self.links, height, width)
        mixed: Tensor = self.mix(warped.transpose(1, 2).reshape(batch, -1, height, width))
        return mixed

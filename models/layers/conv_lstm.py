"""ConvLSTM cell. Source: Shi et al. 2015, eq. 3; without peepholes as Wu 2019 uses it."""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class ConvLSTMCell(nn.Module):
    """One ConvLSTM step on (batch, channel, height, width).

    All gates come from one convolution over the concatenated input and hidden state, which is the same
    arithmetic as separate input and recurrent kernels and one launch instead of two.

    Args:
        inputs: channels of the input.
        hidden: channels of hidden and cell state.
        kernel: odd kernel size; "same" padding keeps height and width.
        peepholes: add the per-channel W_c * c terms of Shi 2015 (one weight a channel, so that the cell works
            at any height and width).
    """

    def __init__(self, inputs: int, hidden: int, kernel: int, *, peepholes: bool = False) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"ConvLSTM kernel must be odd to keep the grid in place, got {kernel}")
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.peephole = nn.Parameter(torch.zeros(3, hidden, 1, 1)) if peepholes else None
        nn.init.xavier_uniform_(self.gates.weight)
        bias = torch.zeros(4 * hidden)
        bias[hidden : 2 * hidden] = 1.0  # forget gate: remember by default
        self.gates.bias = nn.Parameter(bias)

    def forward(self, x: Tensor, state: State) -> State:
        """Return the next (hidden, cell), each (batch, hidden, height, width)."""
        h, c = state
        i, f, o, g = self.gates(torch.cat((x, h), dim=1)).chunk(4, dim=1)
        if self.peephole is not None:
            i = i + self.peephole[0] * c
            f = f + self.peephole[1] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if self.peephole is not None:
            o = o + self.peephole[2] * c
        return torch.sigmoid(o) * torch.tanh(c), c

    def zero_state(self, x: Tensor) -> State:
        """Zero state on the grid, device and dtype of ``x`` (batch, any, height, width)."""
        zeros = x.new_zeros((x.shape[0], self.hidden, *x.shape[-2:]))
        return zeros, zeros

"""ConvGRU cell. Source: Shi et al. 2017, equation 2.

With the conventions of the authors' code: leaky ReLU, and the reset gate acts on the convolved state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2


class GRUCell(nn.Module):
    """What ConvGRU and TrajGRU share: input convolution and gates. A subclass writes ``of_state``.

    Args:
        inputs: channels of the input; 0 for a cell that has none (the top of a forecaster).
        hidden: channels of the state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.from_input = nn.Conv2d(inputs, 3 * hidden, 3, padding=1) if inputs else None

    def of_state(self, x: Tensor | None, state: Tensor) -> Tensor:
        """(batch, 3 hidden, height, width): what the state adds to reset, update and candidate."""
        raise NotImplementedError

    def forward(self, x: Tensor | None, state: Tensor) -> Tensor:
        """The next state, (batch, hidden, height, width); ``x`` is None for a cell without input."""
        r_h, u_h, n_h = self.of_state(x, state).chunk(3, dim=1)
        if self.from_input is None or x is None:
            reset, update, new = torch.sigmoid(r_h), torch.sigmoid(u_h), torch.zeros_like(n_h)
        else:
            r_x, u_x, new = self.from_input(x).chunk(3, dim=1)
            reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(u_x + u_h)
        new = F.leaky_relu(new + reset * n_h, SLOPE)
        return update * state + (1 - update) * new


class ConvGRUCell(GRUCell):
    """State to state by one convolution of a fixed neighbourhood.

    Args:
        kernel, dilation: of the state-to-state convolution; the kernel is odd.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__(inputs, hidden)
        if kernel % 2 == 0:
            raise ValueError(f"ConvGRU kernel must be odd to keep the grid in place, got {kernel}")
        reach = dilation * (kernel // 2)
        self.from_state = nn.Conv2d(hidden, 3 * hidden, kernel, padding=reach, dilation=dilation)

    def of_state(self, x: Tensor | None, state: Tensor) -> Tensor:
        """See ``GRUCell``."""
        made: Tensor = self.from_state(state)
        return made

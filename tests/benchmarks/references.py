"""Networks and layers in the plain style of public code, for comparison: concatenate, convolve, split; one warp a link.

Written anew, to the same equations and with the weights of ours, so that both sides compute the same numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.conv_lstm import ConvLSTMCell
from models.layers.traj_gru import TrajGRUCell
from models.networks.encoder_forecaster import EncoderForecaster


def lstm_step(cell: ConvLSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    padding = cell.gates.weight.shape[-1] // 2
    weight = cell.gates.weight.contiguous()  # the layout of public code
    gates = F.conv2d(torch.cat([x, h], dim=1), weight, cell.gates.bias, padding=padding)
    i, f, o, g = torch.split(gates, cell.hidden, dim=1)
    i, f, o, g = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o), torch.tanh(g)
    c = f * c + i * g
    return o * torch.tanh(c), c


def encoder_forecaster(network: EncoderForecaster, frames: Tensor, leads: int, teacher: Tensor | None = None) -> Tensor:
    batch, _, _, height, width = frames.shape

    def step(stack, x, states):
        for n, cell in enumerate(stack):
            states[n] = lstm_step(cell, x, *states[n])
            x = states[n][0]
        return x

    states = [(frames.new_zeros(batch, cell.hidden, height, width),) * 2 for cell in network.encoder]
    for t in range(frames.shape[1]):
        step(network.encoder, frames[:, t], states)
    x, outputs = torch.zeros_like(frames[:, 0]), []
    for k in range(leads):
        outputs.append(network.head(step(network.forecaster, x, states)))
        x = outputs[-1].clamp(0, 1) if teacher is None else teacher[:, k]
    return torch.stack(outputs, dim=1)


def traj_gru_of_state(cell: TrajGRUCell, x: Tensor | None, state: Tensor) -> Tensor:
    """The state part of a TrajGRU, each link warped by itself."""
    flow = cell.flow_from_state(state)
    if x is not None:
        flow = flow + cell.flow_from_input(x)
    flows = torch.split(cell.flows(F.leaky_relu(flow, 0.2)), 2, dim=1)
    return cell.mix(torch.cat([_warped(state, -one) for one in flows], dim=1))


def _warped(state: Tensor, flow: Tensor) -> Tensor:
    batch, _, height, width = state.shape
    columns = torch.arange(0, width).view(1, -1).repeat(height, 1)
    rows = torch.arange(0, height).view(-1, 1).repeat(1, width)
    grid = torch.cat(
        (
            columns.view(1, 1, height, width).repeat(batch, 1, 1, 1),
            rows.view(1, 1, height, width).repeat(batch, 1, 1, 1),
        ),
        1,
    ).float()
    grid = grid + flow
    x = 2.0 * grid[:, 0] / max(width - 1, 1) - 1.0
    y = 2.0 * grid[:, 1] / max(height - 1, 1) - 1.0
    return F.grid_sample(state, torch.stack((x, y), dim=-1), align_corners=True)


def traj_gru_step(cell: TrajGRUCell, x: Tensor, state: Tensor) -> Tensor:
    of_x = torch.split(cell.from_input(x), cell.hidden, dim=1)
    of_h = torch.split(traj_gru_of_state(cell, x, state), cell.hidden, dim=1)
    reset, update = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
    new = F.leaky_relu(of_x[2] + reset * of_h[2], 0.2)
    return update * state + (1 - update) * new


def dynamic_convolution(x: Tensor, kernels: Tensor) -> Tensor:
    batch, outputs, _, rows, columns = kernels.shape
    patches = F.unfold(x, (rows, columns))
    made = torch.einsum("bok,bkl->bol", kernels.reshape(batch, outputs, -1), patches)
    return made.view(batch, outputs, x.shape[-2] - rows + 1, x.shape[-1] - columns + 1)


def local_filter(x: Tensor, filters: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    side = round(filters.shape[1] ** 0.5)
    patches = F.unfold(x, side, padding=side // 2).view(batch, channels, side * side, height, width)
    return torch.einsum("bckhw,bkhw->bchw", patches, filters)

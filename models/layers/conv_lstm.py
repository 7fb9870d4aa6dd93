"""ConvLSTM cell. Source: Shi et al. 2015, eq. 3; without peepholes as Wu 2019 uses it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

NHWC = torch.channels_last


@dataclass
class State:
    """Hidden and cell state, each (batch, hidden, height, width); the cell state is float32.

    ``joined`` is the workspace (batch, inputs + hidden, height, width) of which ``h`` is the last part. Without
    gradients the next hidden state is written into it, so a state is used once. ``fresh`` is a hidden state of zeros.
    """

    h: Tensor
    c: Tensor
    joined: Tensor | None = None
    fresh: bool = False


class ConvLSTMCell(nn.Module):
    """One ConvLSTM step on (batch, channel, height, width).

    All gates come from one convolution over the concatenated input and hidden state. Memory is laid out with the
    channels last, which CPU and GPU convolve fastest. With gradients a whole sequence is one node of the graph
    (``_Scan``); without, states are overwritten in place.

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
        self.inputs, self.hidden = inputs, hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.peephole = nn.Parameter(torch.zeros(3, hidden, 1, 1)) if peepholes else None
        nn.init.xavier_uniform_(self.gates.weight)
        bias = torch.zeros(4 * hidden)
        bias[hidden : 2 * hidden] = 1.0  # forget gate: remember by default
        self.gates.bias = nn.Parameter(bias)
        _lay_out(self)
        self.register_load_state_dict_post_hook(_lay_out)

    def zero_state(self, x: Tensor) -> State:
        """Zero state on the grid and device of ``x`` (batch, any, height, width)."""
        batch, height, width = x.shape[0], *x.shape[-2:]
        c = _empty(x, batch, self.hidden, torch.promote_types(x.dtype, torch.float32)).zero_()
        if torch.is_grad_enabled():
            return State(x.new_zeros((batch, self.hidden, height, width)), c)
        joined = _empty(x, batch, self.inputs + self.hidden, _working_dtype(x)).zero_()
        return State(joined[:, self.inputs :], c, joined, fresh=True)

    def forward(self, x: Tensor, state: State) -> State:
        """Return the next state; ``x`` is (batch, inputs, height, width)."""
        if not torch.is_grad_enabled():
            return self._advance(x, state)
        if self.peephole is not None:
            return self._step(x, state)
        return self.scan(x.unsqueeze(0), state)[1]

    def scan(self, xs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run over a whole sequence.

        Args:
            xs: (time, batch, inputs, height, width).
            state: to start from; None is zero.

        Returns:
            Hidden states (time, batch, hidden, height, width), and the last state.
        """
        if torch.is_grad_enabled() and self.peephole is None:
            start = (None, None) if state is None else (state.h, state.c)
            hs, h, c = _Scan.apply(xs, *start, self.gates.weight, self.gates.bias, _working_dtype(xs))  # type: ignore[no-untyped-call]
            return hs, State(h, c)
        hidden = []
        state = self.zero_state(xs[0]) if state is None else state
        for x in xs:
            state = self(x, state)
            hidden.append(state.h if torch.is_grad_enabled() else state.h.clone())
        return torch.stack(hidden), state

    def _step(self, x: Tensor, state: State) -> State:
        """The equations as they are printed; the only way with peepholes."""
        i, f, o, g = self.gates(torch.cat((x, state.h.to(x.dtype)), dim=1)).chunk(4, dim=1)
        c = state.c
        if self.peephole is not None:
            i, f = i + self.peephole[0] * c, f + self.peephole[1] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if self.peephole is not None:
            o = o + self.peephole[2] * c
        return State((torch.sigmoid(o) * torch.tanh(c)).to(x.dtype), c)

    def _advance(self, x: Tensor, state: State) -> State:
        """The same without gradients, in place."""
        joined, c = state.joined, state.c
        if joined is None:
            joined = torch.cat((x, state.h.to(x.dtype)), dim=1).to(_working_dtype(x), memory_format=NHWC)
            c = c.clone()
        joined[:, : self.inputs].copy_(x)
        weight, bias = self.gates.weight.to(joined.dtype), self.gates.bias.to(joined.dtype)  # type: ignore[union-attr]
        reads = self.inputs if state.fresh else None  # zeros need no convolution
        gates = F.conv2d(joined[:, :reads], weight[:, :reads], bias, padding=weight.shape[-1] // 2)
        i, f, o, g = gates.chunk(4, dim=1)
        if self.peephole is not None:
            i.add_(self.peephole[0] * c)
            f.add_(self.peephole[1] * c)
        else:
            gates[:, : 3 * self.hidden].sigmoid_()
        _tanh_(g)
        if self.peephole is not None:
            c = c.mul_(f.sigmoid_()).add_(g.mul_(i.sigmoid_()))
            o.add_(self.peephole[2] * c).sigmoid_()
        else:
            c = c.mul_(f).add_(g.mul_(i))
        h = joined[:, self.inputs :]
        torch.mul(_tanh_(g.copy_(c)), o, out=h)
        return State(h, c, joined)


class _Scan(torch.autograd.Function):
    """A ConvLSTM layer over a whole sequence as one node.

    The input is convolved for all times at once, the weights get their gradient from one convolution over all times,
    and the gates are kept once, activated, and overwritten by their gradients on the way back (so a second backward
    pass is refused).
    """

    @staticmethod
    def forward(
        ctx: Any, xs: Tensor, h: Tensor | None, c: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        time, batch, inputs = xs.shape[:3]
        padding = weight.shape[-1] // 2
        w = weight.to(dtype)
        wx, wh = w[:, :inputs].contiguous(memory_format=NHWC), w[:, inputs:].contiguous(memory_format=NHWC)
        x = xs.flatten(0, 1).to(dtype).contiguous(memory_format=NHWC)
        gates = F.conv2d(x, wx, bias.to(dtype), padding=padding).contiguous(memory_format=NHWC)
        hidden = wh.shape[1]
        hs = _empty(x, batch * (time + 1), hidden, dtype)
        start = _empty(x, batch, hidden, torch.promote_types(xs.dtype, torch.float32))
        hs[:batch], start[:] = 0 if h is None else h, 0 if c is None else c
        cell = start.clone()
        for t in range(time):
            now, then = slice(t * batch, (t + 1) * batch), slice((t + 1) * batch, (t + 2) * batch)
            z = gates[now]
            if t or h is not None:
                z.add_(F.conv2d(hs[now], wh, padding=padding))
            i, f, o, g = z.chunk(4, dim=1)
            z[:, : 3 * hidden].sigmoid_()
            _tanh_(g)
            _remember(cell, i, f, g)
            torch.mul(_tanh_(cell.to(dtype, copy=True)), o, out=hs[then])
        # the cell states are not kept: they follow from the gates, element by element
        ctx.save_for_backward(x, hs, start, wx, wh, gates)
        ctx.shapes, ctx.padding, ctx.spent = (time, batch, weight.dtype, xs.dtype), padding, False
        ctx.set_materialize_grads(False)
        outputs = hs[batch:].unflatten(0, (time, batch)).to(xs.dtype)
        return outputs, hs[-batch:].to(xs.dtype, copy=True), cell

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("a ConvLSTM sequence can be differentiated once: its gates hold their gradients now")
        ctx.spent = True
        x, hs, start, wx, wh, gates = ctx.saved_tensors
        time, batch, weight_dtype, x_dtype = ctx.shapes
        from_outputs, dh, dc = grads
        dh = torch.zeros_like(hs[:batch]) if dh is None else dh.to(hs.dtype)
        dc = torch.zeros_like(start) if dc is None else dc.clone()
        cells = [start]
        for t in range(time):
            i, f, _, g = gates[t * batch : (t + 1) * batch].chunk(4, dim=1)
            cells.append(_remember(cells[-1].clone(), i, f, g))
        back = wh.flip(2, 3).transpose(0, 1).contiguous(memory_format=NHWC)
        for t in reversed(range(time)):
            now = slice(t * batch, (t + 1) * batch)
            if from_outputs is not None:
                dh = dh + from_outputs[t]
            z = gates[now]
            i, f, o, g = z.chunk(4, dim=1)
            tanh_c = _tanh_(cells.pop())
            dho = dh * o
            dho_tanh = dho * tanh_c
            dc.add_(dho).addcmul_(dho_tanh, tanh_c.neg_())
            # each gate is read for the last time before its own gradient takes its place
            torch.addcmul(dho_tanh, dho_tanh, o, value=-1, out=o)
            before = f.clone()
            df = (dc * cells[-1]).mul_(before)
            f.copy_(df.addcmul_(df, before, value=-1))
            dg = dc * i
            di = dg * g
            i.copy_(di.addcmul_(di, i, value=-1))
            g.copy_(dg.addcmul_(dg, g.square(), value=-1))
            dc.mul_(before)
            if t or ctx.needs_input_grad[1]:
                dh = F.conv2d(z, back, padding=ctx.padding)
        weights = [_weight_gradient(values, w, gates, ctx.padding) for values, w in ((x, wx), (hs[: time * batch], wh))]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = F.conv2d(gates, wx.flip(2, 3).transpose(0, 1), padding=ctx.padding).unflatten(0, (time, batch))
            dx = dx.to(x_dtype)
        bias = gates.sum(dim=(0, 2, 3), dtype=weight_dtype)
        dh = dh.to(x_dtype) if ctx.needs_input_grad[1] else None
        return dx, dh, dc if ctx.needs_input_grad[2] else None, torch.cat(weights, dim=1).to(weight_dtype), bias, None


def _lay_out(cell: ConvLSTMCell, _: object = None) -> None:
    """Weights with the channels last, also after loading."""
    cell.gates.weight.data = cell.gates.weight.data.contiguous(memory_format=NHWC)


def _working_dtype(x: Tensor) -> torch.dtype:
    """What convolutions compute in here: the type of automatic mixed precision, else that of the data."""
    device = x.device.type
    mixed = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if mixed else x.dtype


def _remember(c: Tensor, i: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The next cell state, in place; the gates may be of lower precision."""
    return c.mul_(f).add_(i * g) if i.dtype != c.dtype else c.mul_(f).addcmul_(i, g)


def _weight_gradient(x: Tensor, weight: Tensor, dy: Tensor, padding: int) -> Tensor:
    """Of a convolution of ``x`` that gave ``y``; for one or two channels a product, which is ten times faster."""
    if x.shape[1] > 2:
        return conv2d_weight(x, weight.shape, dy, padding=padding)
    patches = F.unfold(x, weight.shape[-1], padding=padding).transpose(0, 1).flatten(1)
    return (patches @ dy.permute(0, 2, 3, 1).flatten(0, 2)).T.reshape(weight.shape)


def _empty(like: Tensor, batch: int, channels: int, dtype: torch.dtype) -> Tensor:
    shape = (batch, channels, *like.shape[-2:])
    return torch.empty(shape, device=like.device, dtype=dtype, memory_format=NHWC)


def _tanh_(x: Tensor) -> Tensor:
    """Hyperbolic tangent in place; in float32 by the logistic function, whose CPU kernel is six times faster."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()

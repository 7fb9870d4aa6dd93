"""Dynamic convolution: the kernels are an input. Source: Klein, Wolf and Afek 2015.

All are cross-correlations, as in deep learning: output(y) = sum over a of kernel(a) x(y + a). Gradients reach both
the image and the kernels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def dynamic_convolution(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every sample with kernels of its own, over the valid region.

    Args:
        x: (batch, inputs, height, width).
        kernels: (batch, outputs, inputs, rows, columns).

    Returns:
        (batch, outputs, height - rows + 1, width - columns + 1).

    Raises:
        ValueError: shapes that do not fit.
    """
    if kernels.ndim != 5 or x.ndim != 4 or kernels.shape[0] != x.shape[0] or kernels.shape[2] != x.shape[1]:
        raise ValueError(f"images {tuple(x.shape)} and kernels {tuple(kernels.shape)} do not fit")
    if x.shape[-2] < kernels.shape[-2] or x.shape[-1] < kernels.shape[-1]:
        raise ValueError(f"kernels of {tuple(kernels.shape[-2:])} on images of {tuple(x.shape[-2:])}")
    made: Tensor = _DynamicConvolution.apply(x, kernels)  # type: ignore[no-untyped-call]
    return made


class _DynamicConvolution(torch.autograd.Function):
    """Forward and both gradients as in the paper.

    dL/dx is the full correlation of dL/dy with the turned kernels, dL/dk the valid correlation of x with dL/dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        return _each(x, kernels)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernels = ctx.saved_tensors
        dy = dy.to(x.dtype)  # of lower precision under autocast
        dx = dk = None
        rows, columns = kernels.shape[-2:]
        if ctx.needs_input_grad[0]:
            padded = F.pad(dy, (columns - 1, columns - 1, rows - 1, rows - 1))
            dx = _each(padded, kernels.flip(-2, -1).transpose(1, 2))
        if ctx.needs_input_grad[1]:
            # every input channel is an image, every gradient channel a kernel
            images, gradients = x.transpose(0, 1), dy
            dk = torch.stack(
                [F.conv2d(images[:, n : n + 1], gradients[n].unsqueeze(1)).transpose(0, 1) for n in range(x.shape[0])]
            )
        return dx, dk


def _each(x: Tensor, kernels: Tensor) -> Tensor:
    """One convolution a sample on a CPU, one grouped convolution on a GPU."""
    batch, outputs = kernels.shape[:2]
    if x.device.type == "cpu":
        return torch.cat([F.conv2d(x[n : n + 1], kernels[n]) for n in range(batch)])
    made = F.conv2d(x.reshape(1, -1, *x.shape[-2:]), kernels.flatten(0, 1), groups=batch)
    return made.view(batch, outputs, *made.shape[-2:])


def separable_convolution(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Convolve every sample with a vertical, then a horizontal filter of its own, over the valid region.

    Written as two products with banded matrices, whose cost does not grow with the number of taps.

    Args:
        x: (..., channel, height, width), any leading dimensions.
        vertical, horizontal: (..., taps) with the same leading dimensions; shared by the channels.

    Returns:
        (..., channel, height - taps + 1, width - taps + 1).
    """
    height, width = x.shape[-2:]
    taps = vertical.shape[-1]
    if min(height, width) < taps:
        raise ValueError(f"filters of {taps} taps on images of {height} x {width}")
    down = _banded(vertical, height).unsqueeze(-3)
    across = _banded(horizontal, width).unsqueeze(-3)
    return down @ x @ across.transpose(-1, -2)


def _banded(filters: Tensor, size: int) -> Tensor:
    """(..., taps) -> (..., size - taps + 1, size): row r is the filter, shifted r places to the right."""
    taps = filters.shape[-1]
    rows = size - taps + 1
    # a period of size + 1 shifts the pattern by one in every row of a matrix that is ``size`` wide
    period = F.pad(filters, (0, rows)).unsqueeze(-2).expand(*filters.shape[:-1], rows, size + 1)
    return period.flatten(-2)[..., : rows * size].unflatten(-1, (rows, size))

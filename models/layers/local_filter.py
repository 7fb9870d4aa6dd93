"""Dynamic local filtering: every pixel has a filter of its own. Source: De Brabandere et al. 2016."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def local_filter(x: Tensor, filters: Tensor) -> Tensor:
    """Weighted sum of the neighbourhood of each pixel, zero outside the image.

    Written as shifts and multiply-adds: no neighbourhood is ever copied, neither forward nor back.

    Args:
        x: (batch, channel, height, width).
        filters: (batch, side * side, height, width), row by row, side odd; shared by the channels.

    Returns:
        Like ``x``.

    Raises:
        ValueError: filters whose number is no odd square, or whose shape does not fit.
    """
    side = round(filters.shape[1] ** 0.5)
    if side * side != filters.shape[1] or side % 2 == 0:
        raise ValueError(f"{filters.shape[1]} filter weights are not the square of an odd side")
    if x.shape[0] != filters.shape[0] or x.shape[-2:] != filters.shape[-2:]:
        raise ValueError(f"images {tuple(x.shape)} and filters {tuple(filters.shape)} do not fit")
    made: Tensor = _LocalFilter.apply(x, filters, side)  # type: ignore[no-untyped-call]
    return made


def _shifted(padded: Tensor, side: int, height: int, width: int) -> list[Tensor]:
    """Views of the padded image (batch, channel, height, width), one for each place of the filter."""
    return [padded[..., r : r + height, c : c + width] for r in range(side) for c in range(side)]


class _LocalFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(x, filters)
        ctx.side = side
        reach = side // 2
        padded = F.pad(x, (reach, reach, reach, reach))
        out = torch.zeros_like(x)
        for n, view in enumerate(_shifted(padded, side, *x.shape[-2:])):
            out.addcmul_(view, filters[:, n : n + 1])
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, filters = ctx.saved_tensors
        reach = ctx.side // 2
        height, width = x.shape[-2:]
        padded = F.pad(x, (reach, reach, reach, reach))
        dx = dfilters = None
        if ctx.needs_input_grad[1]:
            dfilters = torch.empty_like(filters)
            for n, view in enumerate(_shifted(padded, ctx.side, height, width)):
                torch.sum(grad * view, dim=1, out=dfilters[:, n])
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(padded)
            for n, view in enumerate(_shifted(spread, ctx.side, height, width)):
                view.addcmul_(grad, filters[:, n : n + 1])
            dx = spread[..., reach : reach + height, reach : reach + width]
        return dx, dfilters, None

"""Training losses. Every one is masked: pixels that are not observed carry no gradient and no weight.

A loss returns a sum and a weight, not their quotient: so losses of several batches, or processes, add up exactly.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import Head


class Total(NamedTuple):
    """A loss, before the division. Both are scalars."""

    sum: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        """The loss; 0 where nothing is observed."""
        return self.sum / self.weight.clamp_min(1e-6)


# raw outputs (batch, lead, outputs, height, width), target pixels 0-1, observed (batch, lead, 1, height, width)
Loss = Callable[[Tensor, Tensor, Tensor], Total]


def mse(raw: Tensor, target: Tensor, observed: Tensor) -> Total:
    """Mean squared error. ``target`` may hold anything, also NaN, where it is not observed."""
    error, weight = _error(raw, target, observed)
    return Total((error**2).sum(), weight.sum())


def mae(raw: Tensor, target: Tensor, observed: Tensor) -> Total:
    """Mean absolute error."""
    error, weight = _error(raw, target, observed)
    return Total(error.abs().sum(), weight.sum())


def balanced(raw: Tensor, target: Tensor, observed: Tensor, levels: Sequence[float]) -> Total:
    """B-MSE + B-MAE: heavy rain counts more, since light rain is most of the pixels.

    Weights 1, 2, 5, 10, 30 for true values below and from each of four ``levels`` (0-1, the frame values of 2, 5,
    10 and 30 mm/h). Divided by the sum of the weights, so that the size does not depend on the weather.
    Source: Shi et al. 2017, section 4.1.
    """
    error, weight = _error(raw, target, observed)
    for level, heavier in zip(levels, (2.0, 5.0, 10.0, 30.0), strict=True):
        weight = torch.where((target >= level) & (weight > 0), heavier, weight)
    return Total(((error**2 + error.abs()) * weight).sum(), weight.sum())


def cross_entropy(raw: Tensor, target: Tensor, observed: Tensor, head: Head) -> Total:
    """Cross-entropy of the first channel by what the head says of it; further channels count with their MSE.

    Of classes, or of rain and no rain; of values as if a pixel were a probability (Shi et al. 2015 on Moving MNIST),
    clipped to 1e-4.
    """
    seen = observed.expand_as(target[:, :, :1])
    first = torch.where(seen, target[:, :, :1], 0.0)
    if head.kind == "categorical":
        borders = torch.tensor(head.levels, device=raw.device)
        classes = torch.bucketize(first.squeeze(2).contiguous(), borders, right=True)
        entropy = F.cross_entropy(raw[:, :, : head.logits].transpose(1, 2), classes, reduction="none").unsqueeze(2)
    elif head.kind == "segmentation":
        event = (first >= head.levels[0]).to(raw.dtype)
        entropy = F.binary_cross_entropy_with_logits(raw[:, :, :1], event, reduction="none")
    else:
        p = raw[:, :, :1].clamp(1e-4, 1 - 1e-4)
        entropy = -(first * p.log() + (1 - first) * (1 - p).log())
    total = Total(torch.where(seen, entropy, 0.0).sum(), seen.sum().to(raw.dtype))
    return _with_other_channels(total, raw, target, observed, head.described)


def ordinal(raw: Tensor, target: Tensor, observed: Tensor, head: Head) -> Total:
    """Cross-entropy of reaching each level, and ten times the squared error of the mean.

    The n-th level counts n times, since heavy rain is rare. A pixel reaches a level that it is rounded to.

    Raises:
        ValueError: the head is not ordinal.
    """
    if head.kind != "ordinal":
        raise ValueError(f"this loss is for an ordinal head, not {head.kind!r}")
    count = head.logits
    seen = observed.expand_as(target[:, :, :1])
    first = torch.where(seen, target[:, :, :1], 0.0)
    borders = torch.tensor(head.levels, device=raw.device).view(-1, 1, 1) - 0.5 / 255
    reached = (first >= borders).to(raw.dtype)
    entropy = F.binary_cross_entropy_with_logits(raw[:, :, :count], reached, reduction="none")
    entropy = entropy * torch.arange(1, count + 1, device=raw.device).view(-1, 1, 1)
    error = raw[:, :, count : count + 1] - first
    both = entropy.sum(dim=2, keepdim=True) + 10 * error**2
    total = Total(torch.where(seen, both, 0.0).sum(), seen.sum().to(raw.dtype))
    return _with_other_channels(total, raw, target, observed, head.described)


def dice(raw: Tensor, target: Tensor, observed: Tensor, head: Head) -> Total:
    """Dice loss of rain against no rain, 1 - 2 |PQ| / (|P| + |Q|), mean over frames. Source: Lguensat et al. 2017.

    A frame without rain in forecast and truth has a loss of 0 (1 is added above and below).

    Raises:
        ValueError: the head is not a segmentation.
    """
    if head.kind != "segmentation":
        raise ValueError(f"the Dice loss is for a segmentation head, not {head.kind!r}")
    p = torch.sigmoid(raw[:, :, :1]) * observed
    q = ((target[:, :, :1] >= head.levels[0]) & observed).to(raw.dtype)
    overlap, size = ((p * q).sum(dim=(2, 3, 4)), (p + q).sum(dim=(2, 3, 4)))
    some = observed.flatten(2).any(dim=2)
    total = Total(((1 - (2 * overlap + 1) / (size + 1)) * some).sum(), some.sum().to(raw.dtype))
    return _with_other_channels(total, raw, target, observed, 1)


def backward_accumulated(raw: Tensor, target: Tensor, observed: Tensor, step: Loss = mse) -> Total:
    """Per-step losses summed up from the last lead backwards, and those sums added (Wu 2019, chapter 5, as we read it).

    The loss of lead k is in k of the sums, so late leads, where a forecast fades, weigh most.
    """
    totals = [step(raw[:, k : k + 1], target[:, k : k + 1], observed[:, k : k + 1]) for k in range(raw.shape[1])]
    pairs = list(enumerate(totals, start=1))
    return Total(torch.stack([k * t.sum for k, t in pairs]).sum(), torch.stack([k * t.weight for k, t in pairs]).sum())


def gradient_difference(raw: Tensor, target: Tensor, observed: Tensor) -> Total:
    """Squared difference of the absolute gradients along rows and columns, against blur (Mathieu et al. 2016)."""
    made, _ = _error(raw, torch.zeros_like(raw), observed)
    true = torch.where(observed, target, 0.0)
    total = Total(raw.new_zeros(()), raw.new_zeros(()))
    for dim in (-1, -2):
        both = observed.narrow(dim, 1, observed.shape[dim] - 1) & observed.narrow(dim, 0, observed.shape[dim] - 1)
        error = (made.diff(dim=dim).abs() - true.diff(dim=dim).abs()) * both
        total = _sum(total, Total((error**2).sum(), both.expand_as(error).sum().to(raw.dtype)))
    return total


def sharpened(raw: Tensor, target: Tensor, observed: Tensor, base: Loss, weight: float) -> Total:
    """``base`` plus ``weight`` times the gradient difference, both over the weight of ``base``: so parts add up."""
    main, edges = base(raw, target, observed), gradient_difference(raw, target, observed)
    return Total(main.sum + weight * edges.sum / 2, main.weight)  # each pixel has two gradients


NAMES = ("balanced", "mse", "mae", "mse_mae", "cross_entropy", "ordinal", "dice", "backward_mse")


def mse_mae(raw: Tensor, target: Tensor, observed: Tensor) -> Total:
    """MSE + MAE, without the weights of ``balanced``."""
    squares, absolutes = mse(raw, target, observed), mae(raw, target, observed)
    return Total(squares.sum + absolutes.sum, squares.weight)


def named(name: str, head: Head, levels: Sequence[float], gradient_weight: float = 0.0) -> Loss:
    """A loss by name, for a network with that head.

    Args:
        name: one of ``NAMES``.
        levels: pixel values (0-1) of 2, 5, 10 and 30 mm/h, for ``balanced``.
        gradient_weight: of a gradient difference term, for heads that give values.

    Raises:
        ValueError: an unknown name, or a loss that does not fit the head.
    """
    values: dict[str, Loss] = {
        "balanced": functools.partial(balanced, levels=tuple(levels)),
        "mse": mse,
        "mae": mae,
        "mse_mae": mse_mae,
        "backward_mse": backward_accumulated,
    }
    others: dict[str, Loss] = {
        "cross_entropy": functools.partial(cross_entropy, head=head),
        "dice": functools.partial(dice, head=head),
        "ordinal": functools.partial(ordinal, head=head),
    }
    if name not in NAMES:
        raise ValueError(f"no loss {name!r}; there are {', '.join(NAMES)}")
    if head.logits and name in values:
        fits = {"segmentation": "cross_entropy or dice", "ordinal": "ordinal"}.get(head.kind, "cross_entropy")
        raise ValueError(f"a {head.kind} head is trained with {fits}, not {name}")
    if name == "dice" and head.kind != "segmentation":
        raise ValueError(f"the Dice loss is for a segmentation head, not {head.kind!r}")
    if (name == "ordinal") != (head.kind == "ordinal"):
        raise ValueError(f"the ordinal loss is for an ordinal head, and that for no other; the head is {head.kind!r}")
    loss = {**values, **others}[name]
    if gradient_weight and head.logits:
        raise ValueError("a gradient difference needs a head that gives values")
    return functools.partial(sharpened, base=loss, weight=gradient_weight) if gradient_weight else loss


def _error(raw: Tensor, target: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Difference where observed, else 0, and a weight of 1 or 0. Selected, not multiplied: NaN * 0 is NaN."""
    seen = observed.expand_as(target)
    return torch.where(seen, raw - torch.where(seen, target, 0.0), 0.0), seen.to(raw.dtype)


def _sum(a: Total, b: Total) -> Total:
    return Total(a.sum + b.sum, a.weight + b.weight)


def _with_other_channels(total: Total, raw: Tensor, target: Tensor, observed: Tensor, first: int) -> Total:
    if target.shape[2] == 1:
        return total
    return _sum(total, mse(raw[:, :, first:], target[:, :, 1:], observed))

"""Training losses. Every one is masked: pixels that are not observed carry no gradient and no weight."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_mse(predicted: Tensor, target: Tensor, observed: Tensor) -> Tensor:
    """Mean squared error over observed pixels.

    Args:
        predicted, target: same shape, 0-1.
        observed: bool, broadcastable to them.

    Returns:
        Scalar; 0 where nothing is observed.
    """
    error = _error(predicted, target, observed)
    return _weighted_mean(error**2, observed.expand_as(target).to(target.dtype))


def balanced(predicted: Tensor, target: Tensor, observed: Tensor, levels: Sequence[float]) -> Tensor:
    """B-MSE + B-MAE: heavy rain counts more, since light rain is most of the pixels.

    Weights 1, 2, 5, 10, 30 for true values below and from each of four ``levels`` (0-1, the frame values of 2, 5,
    10 and 30 mm/h). Divided by the sum of the weights, so that the size does not depend on the weather.
    Source: Shi et al. 2017, section 4.1.
    """
    weights = torch.ones_like(target)
    for level, weight in zip(levels, (2.0, 5.0, 10.0, 30.0), strict=True):
        weights = torch.where(target >= level, weight, weights)
    weights = weights * observed.to(target.dtype)
    error = _error(predicted, target, observed)
    return _weighted_mean(error**2 + error.abs(), weights)


def _error(predicted: Tensor, target: Tensor, observed: Tensor) -> Tensor:
    """Difference where observed, else 0. Selected, not multiplied: NaN * 0 is NaN, also in the gradient."""
    return torch.where(observed, predicted - torch.where(observed, target, torch.zeros_like(target)), 0.0)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1.0)

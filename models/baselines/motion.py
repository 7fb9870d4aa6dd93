"""Dense motion of radar frames: coarse-to-fine least squares (Lucas and Kanade 1981) with wide Gaussian windows.

One motion field is fitted to all consecutive pairs of the last frames at once; where there is little texture it
leans on the motion around (a Tikhonov term towards the smoothed field), so a forecast never tears.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.warp import pixel_grid, sample


@dataclass(frozen=True)
class MotionConfig:
    """Constants of the fit, chosen on real sequences from five countries (docs/decisions.md).

    Attributes:
        pairs: newest consecutive pairs of frames used.
        presmoothing: standard deviation of the blur before gradients are taken, in pixels of each level.
        coarsest: side in pixels below which the pyramid stops.
        finest: level of the finest fit; 1 is half resolution, which is as sharp as a smooth motion needs.
        max_cells: a level with more cells is not fitted: on a continent the motion is smooth at a quarter resolution.
        window: standard deviation of the fitting window, in pixels of each level.
        iterations: fits per level.
        tikhonov: weight of "no change", relative to the mean texture.
        smoothing: standard deviation of the final texture-weighted smoothing, in pixels of the finest level.
    """

    pairs: int = 3
    presmoothing: float = 0.5
    coarsest: int = 16
    finest: int = 1
    max_cells: int = 2_000_000
    window: float = 6.0
    iterations: int = 2
    tikhonov: float = 0.1
    smoothing: float = 6.0


def estimate_motion(frames: Tensor, observed: Tensor, config: MotionConfig = MotionConfig()) -> Tensor:
    """Motion in pixels per frame.

    Args:
        frames: (batch, time, height, width), 0-1, at least two frames.
        observed: (batch, time, height, width) bool.

    Returns:
        (batch, 2, height, width): eastward (columns) and southward (rows) motion; 0 where there is no echo at all.
    """
    frames, observed = frames[:, -config.pairs - 1 :], observed[:, -config.pairs - 1 :]
    height, width = frames.shape[-2:]
    levels = [(frames * observed, observed.to(frames.dtype))]
    while min(levels[-1][0].shape[-2:]) >= 2 * config.coarsest:
        levels.append(tuple(F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in levels[-1]))  # type: ignore[arg-type]
    fitted = [n for n, (v, _) in enumerate(levels) if n >= config.finest and v[0, 0].numel() <= config.max_cells]
    finest = fitted[0] if fitted else len(levels) - 1
    motion = frames.new_zeros((frames.shape[0], 2, *levels[-1][0].shape[-2:]))
    texture = motion[:, :1]
    for values, weight in reversed(levels[finest:]):
        scale = values.shape[-1] / motion.shape[-1]
        if values.shape[-2:] != motion.shape[-2:]:
            motion = F.interpolate(motion, values.shape[-2:], mode="bilinear", align_corners=False) * round(scale)
        for _ in range(config.iterations):
            step, texture = _fit(blur(values, config.presmoothing), weight, motion, config)
            motion = motion + step
    motion = _weighted_blur(motion, texture, config.smoothing)
    if finest:
        # a cell centre of the coarse level lies between fine cells; interpolate on the padded, even size
        size = (motion.shape[-2] << finest, motion.shape[-1] << finest)
        motion = F.interpolate(motion, size, mode="bilinear", align_corners=False)[..., :height, :width] * 2.0**finest
    return motion


def _fit(values: Tensor, weight: Tensor, motion: Tensor, config: MotionConfig) -> tuple[Tensor, Tensor]:
    """One least-squares update of the motion, and the texture (trace of the structure tensor) behind it."""
    batch, time, height, width = values.shape
    position = (pixel_grid(values) - motion).repeat_interleave(time - 1, dim=0)
    earlier = values[:, :-1].reshape(-1, 1, height, width)
    later = values[:, 1:].reshape(-1, 1, height, width)
    both = torch.cat((earlier, weight[:, :-1].reshape(-1, 1, height, width)), dim=1)
    moved = sample(both, position)
    inside = (position >= 0).all(1, keepdim=True) & (position[:, :1] <= width - 1) & (position[:, 1:] <= height - 1)
    w = moved[:, 1:] * weight[:, 1:].reshape(-1, 1, height, width) * inside
    gx, gy = gradient(0.5 * (moved[:, :1] + later))
    residual = later - moved[:, :1]
    products = torch.cat((gx * gx, gx * gy, gy * gy, gx * residual, gy * residual), dim=1) * w
    products = products.reshape(batch, time - 1, 5, height, width).mean(dim=1)
    xx, xy, yy, xr, yr = blur(products, config.window).unbind(dim=1)
    trace = xx + yy
    ridge = config.tikhonov * trace.mean(dim=(-2, -1), keepdim=True) + 1e-9
    a, d = xx + ridge, yy + ridge
    det = a * d - xy * xy
    step = torch.stack(((xy * yr - d * xr) / det, (xy * xr - a * yr) / det), dim=1)
    # a linearised fit is good for about a pixel; larger steps come from noise and are taken up by coarser levels
    return step.clamp(-1.5, 1.5), trace.unsqueeze(1)


def gradient(field: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along columns and rows."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _weighted_blur(field: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Gaussian mean in which cells count by ``weight``; with no weight nearby, the overall weighted mean."""
    floor = 1e-3 * weight.mean(dim=(-2, -1), keepdim=True) + 1e-12
    total = (weight.sum(dim=(-2, -1), keepdim=True)).clamp_min(1e-12)
    mean = (field * weight).sum(dim=(-2, -1), keepdim=True) / total
    return (blur(field * weight, sigma) + floor * mean) / (blur(weight, sigma) + floor)


def blur(field: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur (batch, channel, height, width), zero outside."""
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=field.device, dtype=field.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    batch, channels, height, width = field.shape
    flat = field.reshape(batch * channels, 1, height, width)
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    flat = F.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return flat.reshape(batch, channels, height, width)

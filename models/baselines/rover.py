"""ROVER: variational optical flow and extrapolation. Source: Woo and Wong 2017; flow after Bruhn et al. 2005.

The combined local-global flow minimises the linearised brightness error, blurred over a neighbourhood (``rho``), plus
``alpha`` times the squared gradient of the flow. Parameters are those of the HKO-7 experiments (Shi et al. 2017), on
8-bit pixels; swirlspy publishes others (rho 9, sigma 1.5).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.baselines.motion import blur, gradient
from models.baselines.optical_flow import extrapolate
from models.contract import Prediction


@dataclass(frozen=True)
class RoverConfig:
    """Parameters of HKO-7 (``max_level`` 6, ``n1`` = ``n2`` = 2), and how often the multigrid cycle is repeated."""

    sigma: float = 4.5
    rho: float = 1.5
    alpha: float = 2000.0
    levels: int = 6
    relaxations: int = 2
    cycles: int = 8


class Rover:
    """Flow from the two newest frames, extrapolation of the newest.

    Two things are not the source's: the extrapolation follows the whole path and interpolates once (theirs moves the
    result step by step, which blurs), and inflow over the edge is flagged.

    Args:
        nonlinear: flow and advection work on the arctangent of the reflectivity around 33 dBZ, which stretches the
            range of rain; else on the pixels.
        dbz_min, dbz_max: reflectivity of pixel values 0 and 1.
    """

    def __init__(
        self,
        *,
        nonlinear: bool,
        dbz_min: float = -10.0,
        dbz_max: float = 60.0,
        config: RoverConfig = RoverConfig(),
    ) -> None:
        self.nonlinear, self.config = nonlinear, config
        self.dbz_min, self.dbz_range = dbz_min, dbz_max - dbz_min

    def __call__(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``; several channels share the motion of the first."""
        if frames.shape[1] < 2:
            raise ValueError("ROVER needs two input frames, got 1")
        newest = self._stretched(frames[:, -2:]) * observed[:, -2:]
        motion = flow(newest[:, 0, :1], newest[:, 1, :1], self.config)
        made = extrapolate(newest[:, 1], observed[:, -1], motion, leads)
        return Prediction(self._restored(made.values), made.extrapolated)

    def _bounds(self) -> Tensor:
        return torch.atan((torch.tensor([self.dbz_min, self.dbz_min + self.dbz_range]) - 33) / 4)

    def _stretched(self, pixels: Tensor) -> Tensor:
        if not self.nonlinear:
            return pixels
        low, high = self._bounds().to(pixels.device)
        return (torch.atan((self.dbz_min + self.dbz_range * pixels - 33) / 4) - low) / (high - low)

    def _restored(self, stretched: Tensor) -> Tensor:
        if not self.nonlinear:
            return stretched
        low, high = self._bounds().to(stretched.device)
        return ((33 + 4 * torch.tan(low + (high - low) * stretched)) - self.dbz_min) / self.dbz_range


class _Equations(NamedTuple):
    """Normal equations of one level: coefficients of u and v, right sides, all (batch, 1, height, width)."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    smoothness: float


def flow(earlier: Tensor, later: Tensor, config: RoverConfig) -> Tensor:
    """Motion in pixels per frame, (batch, 2, height, width): columns and rows.

    Args:
        earlier, later: (batch, 1, height, width), 0-1.
    """
    a, b = (blur(field * 255, config.sigma) for field in (earlier, later))
    gx, gy = gradient((a + b) / 2)
    gt = b - a
    xx, xy, yy, xt, yt = (blur(product, config.rho) for product in (gx * gx, gx * gy, gy * gy, gx * gt, gy * gt))
    return solve(_Equations(xx, xy, yy, config.alpha), -torch.cat((xt, yt), dim=1), config)


def solve(equations: "_Equations", right: Tensor, config: RoverConfig) -> Tensor:
    """Motion (batch, 2, height, width) that fulfils the equations, by ``config.cycles`` multigrid cycles from zero.

    Fields are padded so that every level halves exactly; where the coefficients are zero the motion is only smooth.
    """
    height, width = right.shape[-2:]
    levels = max(0, min(config.levels, min(height, width).bit_length() - 3))
    padding = (0, -width % 2**levels, 0, -height % 2**levels)
    xx, xy, yy, right = (F.pad(t, padding) for t in (*equations[:3], right))
    motion = torch.zeros_like(right)
    for _ in range(config.cycles):
        motion = _cycle(_Equations(xx, xy, yy, equations.smoothness), right, motion, config, levels)
    return motion[..., :height, :width]


def _cycle(equations: "_Equations", right: Tensor, motion: Tensor, config: RoverConfig, levels: int) -> Tensor:
    """One multigrid V-cycle over so many coarser levels."""
    small = levels == 0
    motion = _relaxed(equations, right, motion, 50 if small else config.relaxations)
    if small:
        return motion
    residual = right - _applied(equations, motion)
    halves = [F.avg_pool2d(t, 2) for t in (*equations[:3], residual)]
    coarse = _Equations(halves[0], halves[1], halves[2], equations.smoothness / 4)
    correction = _cycle(coarse, halves[3], torch.zeros_like(halves[3]), config, levels - 1)
    motion = motion + F.interpolate(correction, scale_factor=2.0, mode="bilinear", align_corners=False)
    return _relaxed(equations, right, motion, config.relaxations)


def _neighbours(motion: Tensor) -> Tensor:
    """Sum of the four neighbours; beyond the edge the edge itself."""
    p = F.pad(motion, (1, 1, 1, 1), mode="replicate")
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]


def _applied(equations: _Equations, motion: Tensor) -> Tensor:
    """Left side of the equations."""
    xx, xy, yy, smoothness = equations
    u, v = motion[:, :1], motion[:, 1:]
    return torch.cat((xx * u + xy * v, xy * u + yy * v), dim=1) + smoothness * (4 * motion - _neighbours(motion))


def _relaxed(equations: _Equations, right: Tensor, motion: Tensor, times: int) -> Tensor:
    """Damped Jacobi, both components of a pixel solved together (the source's Gauss-Seidel is not batched)."""
    xx, xy, yy, smoothness = equations
    a, d = xx + 4 * smoothness, yy + 4 * smoothness
    determinant = a * d - xy * xy
    for _ in range(times):
        r = right - _applied(equations, motion)
        step = torch.cat((d * r[:, :1] - xy * r[:, 1:], a * r[:, 1:] - xy * r[:, :1]), dim=1) / determinant
        motion = motion + 0.8 * step
    return motion

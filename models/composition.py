"""One field of two: the newest frame where its rain will be gives texture and amount, the chances of rain the place."""

from dataclasses import dataclass

import torch
from torch import Tensor

HALF = 0.5 / 255  # of a pixel value
DARKEST, BRIGHTEST = -0.05, 0.15  # of what is added to pixel values; 0.1 is 7 dB on the usual scale


@dataclass(frozen=True)
class Composition:
    """How likely places and the moved frame are weighed; a number for each level.

    Attributes:
        texture: how much the moved frame counts when cells are ranked, per pixel value (0-1), beside logits.
        growth: how freely the area changes: power of expected over moved area.
        mean_share: of the mean in what stands within a class.
    """

    texture: tuple[float, ...]
    growth: tuple[float, ...]
    mean_share: float


def composed(
    moved: Tensor,
    fine: Tensor,
    logits: Tensor,
    mean: Tensor,
    seen: Tensor,
    levels: tuple[float, ...],
    how: Composition,
    steep: float,
) -> Tensor:
    """The moved frame, clipped to the classes that are likely: rain keeps its texture.

    A level is reached where its chance ranks highest, in as many cells as reach it in the moved frame: how much rain
    there is comes from the newest frame, which holds in weather that no network saw, and where it is from the chances.
    Classes are given out from the highest level down; cells of equal rank go together. At last all rates are raised or
    lowered by one factor, each within its class, until there is as much rain as in the moved frame.

    Args:
        moved, fine: (batch, 1, height, width), 0-1: the newest frame where its rain will be, bilinear, and by the
            nearest cell, which keeps the texture.
        logits: (batch, level, height, width).
        mean: (batch, 1, height, width): mixed in within the classes.
        seen: (batch, 1, height, width) bool: cells that count.
        levels: pixel values of the levels, whole 255ths.
        steep: the rain rate grows with exp(steep * pixel value).
    """
    made = []
    for field, texture, raw, middle, here in zip(moved[:, 0], fine[:, 0], logits, mean[:, 0], seen[:, 0], strict=True):
        low, high = torch.zeros_like(field), torch.full_like(field, levels[0] - 2 * HALF)
        given = torch.zeros_like(here)
        for n in reversed(range(len(levels))):
            level, after = levels[n], levels[n + 1] - 2 * HALF if n + 1 < len(levels) else 1.0
            area = ((field >= level - HALF) & here).sum()
            expected = (torch.sigmoid(raw[n]) * here).sum()
            growth = ((expected + 1) / (area + 1)).pow(how.growth[n]).clamp(0.5, 2.0)
            wanted = int(area * growth) - int(given.sum())
            if wanted < 1:
                continue
            rank = torch.where(here & ~given, raw[n] + how.texture[n] * (field - level), -torch.inf).flatten()
            cut = rank.kthvalue(len(rank) - wanted + 1).values
            new = (rank >= cut).view_as(given) & here & ~given
            low, high = torch.where(new, level, low), torch.where(new, after, high)
            given = given | new
        mixed = torch.lerp(texture, middle, how.mean_share)
        made.append(_amount_kept(torch.minimum(torch.maximum(mixed, low), high), field, here, low, high, steep))
    return torch.stack(made).unsqueeze(1)


def _amount_kept(field: Tensor, moved: Tensor, here: Tensor, low: Tensor, high: Tensor, steep: float) -> Tensor:
    """``field`` with one number added to its wet cells, each kept in its class: as much rain as in ``moved``."""
    wet = (field > 0) & here
    values, least, most = field[wet], low[wet].clamp_min(1 / 255), high[wet]
    target = ((steep * moved).exp() * ((moved > 0) & here)).sum()
    down, up = DARKEST, BRIGHTEST
    for _ in range(8):
        shift = (down + up) / 2
        amount = (steep * torch.minimum(torch.maximum(values + shift, least), most)).exp().sum()
        down, up = (shift, up) if amount < target else (down, shift)
    kept = field.clone()
    kept[wet] = torch.minimum(torch.maximum(values + (down + up) / 2, least), most)
    return kept


def nearest(field: Tensor, observed: Tensor, position: Tensor, otherwise: Tensor) -> Tensor:
    """Values of the cells nearest to positions; ``otherwise`` where that cell was not observed."""
    batch, _, height, width = field.shape
    x, y = torch.round(position).long().unbind(dim=1)
    cell = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).view(batch, 1, -1)
    found, there = (part.flatten(2).gather(2, cell).view_as(field) for part in (field, observed))
    return torch.where(there, found, otherwise)

"""What the outputs of a network mean: pixel values, classes or levels of rain rate, or rain and no rain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contract import Prediction

KINDS = ("value", "clipped", "categorical", "segmentation", "ordinal")


@dataclass(frozen=True)
class Head:
    """Turns the raw outputs of a network into pixel values and probabilities.

    ``value`` is linear: clipped to 0-1 in forecasts, not in the loss. ``clipped`` is clipped in both.
    ``categorical`` gives the first channel (rain) as logits of the classes below, between and above the ``levels``;
    ``segmentation`` gives one logit of rain at or above its only level; ``ordinal`` one logit for each level, that
    it is reached, and after them the mean, so that neither has to serve for the other. Further channels stay values.

    Attributes:
        kind: one of ``KINDS``.
        levels: rising pixel values (0-1) of the class borders; none for values.

    Raises:
        ValueError: an unknown kind, or levels that do not fit it.
    """

    kind: str = "value"
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"head {self.kind!r}: there are {', '.join(KINDS)}")
        some = "at least one level"
        wanted = {"segmentation": "one level", "categorical": some, "ordinal": some}.get(self.kind, "no levels")
        fits = {"segmentation": len(self.levels) == 1, "categorical": bool(self.levels), "ordinal": bool(self.levels)}
        if not fits.get(self.kind, not self.levels):
            raise ValueError(f"a {self.kind} head takes {wanted}, got {list(self.levels)}")
        if list(self.levels) != sorted(set(self.levels)) or any(not 0 < level < 1 for level in self.levels):
            raise ValueError(f"levels must rise between 0 and 1, got {list(self.levels)}")

    @property
    def logits(self) -> int:
        """Raw channels that describe the first channel; 0 if that is a value."""
        counts = {"categorical": len(self.levels) + 1, "segmentation": 1, "ordinal": len(self.levels)}
        return counts.get(self.kind, 0)

    @property
    def described(self) -> int:
        """Raw channels that say anything of the first channel."""
        return self.logits + 1 if self.kind == "ordinal" else self.logits or 1

    def outputs(self, channels: int) -> int:
        """Raw channels of a network with so many pixel channels."""
        return self.described + channels - 1

    def exceedance(self, raw: Tensor) -> Tensor:
        """Probability of each level or more.

        Args:
            raw: (..., outputs, height, width).

        Returns:
            (..., levels, height, width), falling from level to level.
        """
        logits = raw[..., : self.logits, :, :].float()
        if self.kind == "segmentation":
            return torch.sigmoid(logits)
        if self.kind == "ordinal":  # a level is not reached more often than those below it
            falling = [logits[..., :1, :, :]]
            for n in range(1, self.logits):  # torch's cummin takes ten times as long
                falling.append(torch.minimum(falling[-1], logits[..., n : n + 1, :, :]))
            return torch.sigmoid(torch.cat(falling, dim=-3))
        above = logits.softmax(dim=-3).flip(-3).cumsum(dim=-3).flip(-3)
        return above[..., 1:, :, :].clamp(0, 1)

    def values(self, raw: Tensor) -> Tensor:
        """Pixel values (..., channels, height, width), 0-1: of classes the expected value.

        A class stands for its middle, the lowest for no echo, rain of a segmentation for its level; an ordinal head has
        its own.
        """
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if not self.logits:
            return raw.clamp(0.0, 1.0)
        if self.kind == "ordinal":
            return raw[..., self.logits :, :, :].clamp(0.0, 1.0)
        middles = [(a + b) / 2 for a, b in zip(self.levels, (*self.levels[1:], 1.0), strict=True)]
        if self.kind == "segmentation":
            middles = list(self.levels)
        # expectation as a sum over levels of what reaching it adds
        reached = self.exceedance(raw).split(1, dim=-3)
        rain = torch.zeros_like(reached[0])
        for probability, below, middle in zip(reached, (0.0, *middles), middles, strict=False):
            rain = rain + probability * (middle - below)
        return torch.cat((rain.to(raw.dtype), raw[..., self.logits :, :, :].clamp(0.0, 1.0)), dim=-3)

    def prediction(self, raw: Tensor) -> Prediction:
        """What ``models.contract.Method`` returns, of raw (batch, lead, outputs, height, width)."""
        nothing = torch.zeros_like(raw[:, :, :1], dtype=torch.bool)
        return Prediction(self.values(raw), nothing, self.exceedance(raw) if self.logits else None)

"""Probabilities that mean what they say: logits are stretched and shifted by lead time and level (Platt 1999).

Fitted where a network was not trained. Only what is said of the chances changes; the order of cells, and so the
composed field, stays.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.networks.network import Network
from models.training import load_batch
from models.windows import Samples

# logits are counted in bins of a tenth
EDGE, BINS = 12.0, 240
# fewer events, or fewer other cells, tell nothing; and the weight of "as it is" beside them, in events
FEWEST, PRIOR = 200, 50.0
STEEPEST = 5.0


@dataclass(frozen=True)
class Calibration:
    """Line of each lead time (steps of the moving frame) and level.

    Attributes:
        slope, offset: (lead, level); the first lead is the first step ahead.

    Raises:
        ValueError: not two tables of one shape, with positive slopes.
    """

    slope: tuple[tuple[float, ...], ...]
    offset: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        slope, offset = np.array(self.slope, np.float64), np.array(self.offset, np.float64)
        fits = slope.ndim == 2 and slope.size and slope.shape == offset.shape
        if not fits or not np.isfinite(offset).all() or not ((slope > 0) & np.isfinite(slope)).all():
            raise ValueError("a calibration has a positive slope and an offset for each lead time and level")

    @classmethod
    def of_card(cls, found: dict[str, Any]) -> "Calibration":
        """From the card of a model.

        Raises:
            ValueError: it is not one.
        """
        try:
            tables = [tuple(tuple(float(v) for v in row) for row in found[key]) for key in ("slope", "offset")]
        except (KeyError, TypeError) as err:
            raise ValueError(f"not a calibration: {err}") from err
        return cls(tables[0], tables[1])

    def applied(self, logits: Tensor, steps: float) -> Tensor:
        """Calibrated logits (..., level, height, width) so many steps ahead; as they are at 0."""
        slope, offset = (torch.tensor(t, device=logits.device) for t in (self.slope, self.offset))
        early = min(int(steps), len(slope))
        late, share = min(early + 1, len(slope)), steps - int(steps)
        a, b = (
            torch.lerp(table[early], table[late], share)[:, None, None]
            for table in (
                torch.cat((torch.ones_like(slope[:1]), slope)),
                torch.cat((torch.zeros_like(offset[:1]), offset)),
            )
        )
        return logits * a + b


class Counted:
    """Cells, and those with the event, by lead time, level and logit; of one network or several."""

    def __init__(self, leads: int, levels: tuple[float, ...]) -> None:
        self.levels = levels
        self.cells = np.zeros((leads, len(levels), BINS))
        self.events = np.zeros_like(self.cells)

    def add(self, logits: Tensor, target: Tensor, seen: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (batch, lead, level, height, width).
            target: (batch, lead, 1, height, width), 0-1.
            seen: the same, bool.
        """
        bins = ((logits.clamp(-EDGE, EDGE - 1e-3) + EDGE) * (BINS / (2 * EDGE))).long()
        for lead in range(logits.shape[1]):
            here = seen[:, lead, 0]
            true = target[:, lead, 0][here]
            for n, level in enumerate(self.levels):
                place = bins[:, lead, n][here]
                event = (true >= level - 0.5 / 255).double()
                self.cells[lead, n] += torch.bincount(place, minlength=BINS).cpu().numpy()
                self.events[lead, n] += torch.bincount(place, event, BINS).cpu().numpy()

    def fitted(self) -> Calibration:
        """The lines that make the counted events most likely."""
        lines = np.array(
            [[_line(c, e) for c, e in zip(*rows, strict=True)] for rows in zip(self.cells, self.events, strict=True)]
        )
        slope, offset = (tuple(tuple(round(float(v), 4) for v in row) for row in lines[..., k]) for k in (0, 1))
        return Calibration(slope, offset)


def _line(cells: NDArray[np.float64], events: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset by Newton's method; as it is where there is too little to tell."""
    if min(events.sum(), (cells - events).sum()) < FEWEST:
        return 1.0, 0.0
    z = -EDGE + (np.arange(BINS) + 0.5) * (2 * EDGE / BINS)
    x, line = np.stack((z, np.ones(BINS))), np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-line @ x))
        slope = x @ (events - cells * p) - PRIOR * (line - (1, 0))
        bend = (x * (cells * p * (1 - p))) @ x.T + PRIOR * np.eye(2)
        step = np.linalg.solve(bend, slope)
        line = line + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    return float(np.clip(line[0], 1 / STEEPEST, STEEPEST)), float(line[1])


@torch.no_grad()
def count(
    network: Network, samples: Samples, part: str, numbers: range, frames: tuple[int, int], found: Counted
) -> None:
    """Add a network's forecasts of samples to what was counted.

    Args:
        frames: input and lead frames of a sample.
    """
    network.eval()
    device = next(network.parameters()).device
    for n in numbers:
        pixels, observed = load_batch(samples, part, range(n, n + 1), device)
        x = pixels.float() / 255
        (past, future), (before, seen) = x.split(frames, dim=1), observed.split(frames, dim=1)
        raw = network.roll_out(past, frames[1], observed=before).float()
        found.add(raw[:, :, : network.output.logits], future, seen)

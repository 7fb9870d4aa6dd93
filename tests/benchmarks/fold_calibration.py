"""Calibration of the shipped model: ``python -m tests.benchmarks.fold_calibration ROOT [NETWORK] [--card CARD]``.

The models of the folds forecast the events that they never saw (``tests.benchmarks.event_folds`` trains them); one
calibration is fitted to all of these together. Brisbane takes no part: what is shipped must not learn from it.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from models import checkpoint, dataset
from models.calibration import BINS, EDGE, Counted, count
from models.moving_windows import MovingWindows
from models.windows import TRAIN
from tests.benchmarks.event_folds import FOLDS, LEARNT

SAMPLES = 120  # of each event


def counted(root: Path, network_name: str) -> Counted:
    """Cells of all events, each forecast by the model that never saw it."""
    series, card = dataset.load(root / "data_brisbane")
    frames = (int(card["input_frames"]), int(card["lead_frames"]))
    found: Counted | None = None
    for fold, domains in FOLDS.items():
        for name in set(domains) & set(LEARNT):
            network, _ = checkpoint.load(root / f"{network_name}_{fold}")
            found = found or Counted(frames[1], network.output.levels)
            samples = MovingWindows([series[name]], *frames, crop=128, seed=7)
            count(network, samples, TRAIN, range(SAMPLES), frames, found)
            print(fold, name, flush=True)
    assert found is not None
    return found


def unreliability(found: Counted, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Reliability term of the Brier score by level, all lead times together, as a share of the event's variance."""
    z = -EDGE + (np.arange(BINS) + 0.5) * (2 * EDGE / BINS)
    p = 1 / (1 + np.exp(-(slope[..., None] * z + offset[..., None])))
    term = np.where(found.cells > 0, (found.cells * p - found.events) ** 2 / np.maximum(found.cells, 1), 0)
    rate = found.events.sum(axis=(0, 2)) / found.cells.sum(axis=(0, 2))
    return term.sum(axis=(0, 2)) / found.cells.sum(axis=(0, 2)) / (rate * (1 - rate))


def main() -> None:
    """Fit, print, and write into a card if one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("network", nargs="?", default="growth_decay")
    parser.add_argument("--card", type=Path, help="card.json of the model that gets the calibration")
    given = parser.parse_args()
    found = counted(given.root, given.network)
    fitted = found.fitted()
    slope, offset = np.array(fitted.slope), np.array(fitted.offset)
    print("as it is  ", unreliability(found, np.ones_like(slope), np.zeros_like(offset)).round(4))
    print("calibrated", unreliability(found, slope, offset).round(4))
    print("slope", slope.round(2).tolist(), "offset", offset.round(2).tolist(), sep="\n")
    if given.card is not None:
        card = json.loads(given.card.read_text())
        given.card.write_text(json.dumps({**card, "calibration": asdict(fitted)}, indent=2) + "\n")


if __name__ == "__main__":
    main()

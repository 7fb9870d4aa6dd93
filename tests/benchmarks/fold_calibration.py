"""Does a calibration carry over to other events? ``python -m tests.benchmarks.fold_calibration ROOT [NETWORK]``.

The models of the folds forecast the events that they never saw (``tests.benchmarks.event_folds`` trains them). Each
event is then calibrated by what was found on all the others.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import checkpoint, dataset
from models.calibration import BINS, EDGE, Calibration, Counted, count
from models.moving_windows import MovingWindows
from models.windows import TRAIN
from tests.benchmarks.event_folds import FOLDS, LEARNT

SAMPLES = 60  # of each event


def counted(root: Path, network_name: str) -> dict[str, Counted]:
    """Of each event: cells by logit, forecast by the model that never saw it."""
    series, card = dataset.load(root / "data_brisbane")
    frames = (int(card["input_frames"]), int(card["lead_frames"]))
    found = {}
    for fold, domains in FOLDS.items():
        for name in set(domains) & set(LEARNT):
            network, _ = checkpoint.load(root / f"{network_name}_{fold}")
            found[name] = Counted(frames[1], network.output.levels)
            samples = MovingWindows([series[name]], *frames, crop=128, seed=7)
            count(network, samples, TRAIN, range(SAMPLES), frames, found[name])
    return found


def of_others(found: dict[str, Counted], name: str) -> Calibration:
    """Fitted to all events but one; each counts alike."""
    all_others = Counted(found[name].cells.shape[0], found[name].levels)
    for other, one in found.items():
        if other != name:
            all_others.cells += one.cells * (1e7 / one.cells.sum())
            all_others.events += one.events * (1e7 / one.cells.sum())
    return all_others.fitted()


def unreliability(found: Counted, line: Calibration | None) -> NDArray[np.float64]:
    """Reliability term of the Brier score by level, all lead times together, as a share of the event's variance."""
    z = -EDGE + (np.arange(BINS) + 0.5) * (2 * EDGE / BINS)
    if line is not None:
        z = np.array(line.slope)[..., None] * z + np.array(line.offset)[..., None]
    p = 1 / (1 + np.exp(-z))
    term = np.where(found.cells > 0, (found.cells * p - found.events) ** 2 / np.maximum(found.cells, 1), 0)
    rate = found.events.sum(axis=(0, 2)) / found.cells.sum(axis=(0, 2))
    with np.errstate(divide="ignore"):
        return np.asarray(term.sum(axis=(0, 2)) / found.cells.sum(axis=(0, 2)) / (rate * (1 - rate)))


def main() -> None:
    """Print the unreliability of each event and level, as it is and calibrated by the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("network", nargs="?", default="growth_decay")
    given = parser.parse_args()
    found = counted(given.root, given.network)
    for name, one in found.items():
        print(
            name, unreliability(one, None).round(4), "calibrated", unreliability(one, of_others(found, name)).round(4)
        )


if __name__ == "__main__":
    main()

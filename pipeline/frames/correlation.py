"""Un-centred correlation of two frames, with which Wu 2019 (chapter 4) selects training sequences."""

import numpy as np

from pipeline.frames.grayscale import Pixels

TRAINING_LIMIT = 0.75  # keep a sequence whose first and last frame correlate less
FROZEN = 1.0 - 1e-12


def correlation(first: Pixels, last: Pixels) -> float:
    """sum(PQ) / sqrt(sum(P^2) sum(Q^2) + 1e-9); 0 where a frame is empty, 1 where both are equal and wet."""
    p, q = first.astype(np.float64).ravel(), last.astype(np.float64).ravel()
    return float(p @ q / np.sqrt((p @ p) * (q @ q) + 1e-9))

"""Sums for the fractions skill score (Roberts and Lean 2008): squares of event fractions in square windows."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Pixels

# of every window: forecast fraction squared, observed fraction squared, product of the two
COMPONENTS = ("forecast", "observed", "product")
# window sums are counted in 16 bits
LARGEST_WINDOW = 65535

Window = tuple[int, int]


class FractionSums:
    """Components of the fractions skill score, summed over windows.

    A window takes part if it lies on the grid and at least half of its cells are valid; its fractions are events per
    valid cell. So a missing cell is neither dry nor wet, and windows across the edge, where half of the neighbourhood
    is unknown, do not count.

    Args:
        windows: (rows, columns) of each scale, at most ``LARGEST_WINDOW`` cells.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = tuple(windows)
        self._valid: NDArray[np.bool_] | None = None
        self._shares: list[NDArray[np.float32] | float | None] = []
        self._work: _Workspace | None = None

    def __call__(
        self, forecasts: Sequence[Pixels], observed: Pixels, valid: NDArray[np.bool_], thresholds: Sequence[int]
    ) -> NDArray[np.float64]:
        """Sums of one observation and the forecasts of several methods for it.

        Args:
            forecasts: frames of the compared methods, (rows, columns).
            valid: (rows, columns); other cells are not looked at.
            thresholds: pixel of each event, rising.

        Returns:
            (method, threshold, scale, component) float64; 0 for windows that are larger than the grid.
        """
        fields = [*forecasts, observed]
        if self._work is None or self._work.shape != (len(fields), *valid.shape):
            self._work = _Workspace(len(fields), valid.shape)
        shares = self._shares_of_events(valid)
        reach = [max(window[n] for window in self.windows) - 1 for n in (0, 1)]
        out = np.zeros((len(forecasts), len(thresholds), len(self.windows), len(COMPONENTS)))
        for t, threshold in enumerate(thresholds):
            events = [(field >= threshold) & valid for field in fields]
            box = _bounding_box(events)
            if box is None:
                break  # nor above any higher threshold
            # windows that hold no event add nothing, so it is enough to look around the events
            rows, columns = (slice(max(b.start - r, 0), b.stop + r) for b, r in zip(box, reach, strict=True))
            tables = self._work.running_sums([event[rows, columns] for event in events])
            for s, (window, share) in enumerate(zip(self.windows, shares, strict=True)):
                if share is None:
                    continue
                counts = self._work.counts(tables, window)
                if isinstance(share, np.ndarray):
                    part = share[rows, columns][: counts[0].shape[0], : counts[0].shape[1]]
                    for count in counts:
                        count *= part
                *made, truth = counts
                observed_square = _dot(truth, truth)
                for m, count in enumerate(made):
                    out[m, t, s] = _dot(count, count), observed_square, _dot(count, truth)
                if isinstance(share, float):
                    out[:, t, s] *= share**2
        return out

    def _shares_of_events(self, valid: NDArray[np.bool_]) -> list[NDArray[np.float32] | float | None]:
        # the mask of one lead time is mostly that of the one before
        if self._valid is None or not np.array_equal(self._valid, valid):
            self._valid = valid.copy()
            self._shares = [_share_of_events(valid, window) for window in self.windows]
        return self._shares


class _Workspace:
    """Arrays that are used again and again: memory that is new each time takes longer than the sums themselves."""

    def __init__(self, fields: int, shape: tuple[int, ...]) -> None:
        self.shape = (fields, *shape)
        corners = (shape[0] + 1) * (shape[1] + 1)
        self._table = np.empty(fields * corners, np.int32)
        self._tables = np.empty((fields, corners), np.uint16)
        self._rows, self._counts = np.empty((2, corners), np.uint16)
        self._floats = np.empty((fields, corners), np.float32)

    def running_sums(self, fields: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.uint16]]:
        """Of each field the true cells above and left of each corner, modulo 2**16: differences below are exact."""
        high, wide = fields[0].shape[0] + 1, fields[0].shape[1] + 1
        table = self._table[: len(fields) * high * wide].reshape(high, len(fields), wide)
        table[0], table[:, :, 0] = 0, 0
        for n, cells in enumerate(fields):
            table[1:, n, 1:] = cells
        # numpy's own sums are ten times slower along the first axis, and cumsum goes through 64 bits along the last
        for above, row in pairwise(table):
            np.add(above, row, out=row)
        np.add.accumulate(table, axis=2, out=table)
        made = [self._tables[n, : high * wide].reshape(high, wide) for n in range(len(fields))]
        for n, one in enumerate(made):
            one[...] = table[:, n]
        return made

    def counts(self, tables: Sequence[NDArray[np.uint16]], window: Window) -> list[NDArray[np.float32]]:
        """Events in every window that lies on the grid."""
        high, wide = window
        height, width = tables[0].shape[0] - high, tables[0].shape[1] - wide
        rows = self._rows[: height * (width + wide)].reshape(height, width + wide)
        counts = self._counts[: height * width].reshape(height, width)
        made = []
        for table, memory in zip(tables, self._floats, strict=True):
            np.subtract(table[high:], table[:-high], out=rows)
            np.subtract(rows[:, wide:], rows[:, :-wide], out=counts)
            made.append(memory[: counts.size].reshape(height, width))
            np.copyto(made[-1], counts)
        return made


def _share_of_events(valid: NDArray[np.bool_], window: Window) -> NDArray[np.float32] | float | None:
    """What one event adds to the fraction of each window; one number if all cells are valid, None if none fits."""
    cells = window[0] * window[1]
    if window[0] > valid.shape[0] or window[1] > valid.shape[1]:
        return None
    if valid.all():
        return 1.0 / cells
    work = _Workspace(1, valid.shape)
    (count,) = work.counts(work.running_sums([valid]), window)
    return np.where(2 * count >= cells, 1 / np.maximum(count, 1), 0).astype(np.float32)


def _bounding_box(events: Sequence[NDArray[np.bool_]]) -> tuple[slice, slice] | None:
    """Rows and columns that hold an event of any field."""
    any_event = np.logical_or.reduce(events)
    rows = np.flatnonzero(any_event.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(any_event.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _dot(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    # row by row in float32, then in float64: fast and exact to seven digits
    return float(np.vecdot(one, other).sum(dtype=np.float64))

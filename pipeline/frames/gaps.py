"""Missing frames inside an input sequence: filled between two measured ones, never beyond the newest."""

from datetime import datetime

import numpy as np

from pipeline.frames.grayscale import ADVECTED, NO_COVERAGE, Frame


def fill_gaps(found: dict[datetime, Frame | None], max_gap: int, floor_pixel: int) -> dict[datetime, Frame | None]:
    """Fill runs of at most ``max_gap`` missing frames that have a measured frame on both sides.

    Args:
        found: frame or None for each instant, in order of time.
        max_gap: longest run that is filled.
        floor_pixel: pixels below it are no echo.

    Returns:
        The same instants; filled frames carry the state ``advected``, so that they never count as observed.
    """
    from pipeline.advection import interpolate_gap

    instants = list(found)
    filled = dict(found)
    for start, stop in _runs([found[t] is None for t in instants]):
        if start == 0 or stop == len(instants) or stop - start > max_gap:
            continue
        before, after = found[instants[start - 1]], found[instants[stop]]
        assert before is not None and after is not None  # a run ends at measured frames
        made = interpolate_gap(before.pixels, after.pixels, before.observed, after.observed, stop - start)
        for time, (pixels, covered) in zip(instants[start:stop], made, strict=True):
            pixels = np.where(pixels < floor_pixel, 0, pixels).astype(np.uint8)
            filled[time] = Frame(pixels, np.where(covered, ADVECTED, NO_COVERAGE).astype(np.uint8))
    return filled


def _runs(missing: list[bool]) -> list[tuple[int, int]]:
    """[start, stop) of each run of True."""
    runs, start = [], None
    for n, is_missing in enumerate([*missing, False]):
        if is_missing and start is None:
            start = n
        elif not is_missing and start is not None:
            runs.append((start, n))
            start = None
    return runs

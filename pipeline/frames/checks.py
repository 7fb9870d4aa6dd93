"""Tests of a whole frame: what no rain field looks like is not taken for rain."""

from datetime import datetime

import numpy as np

from pipeline import times
from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.frames.grayscale import ECHO, NO_ECHO, Frame

# a field with fewer measured cells may be of one value by chance
FEW_CELLS = 100
SAME_COVERAGE = 0.02


def frame_fault(frame: Frame, domain: Domain, time: datetime, before: Row | None) -> str:
    """Why a frame cannot be what a radar saw; empty if it can.

    Args:
        before: catalog row of the frame one cadence earlier; None if there is none. A jump of the echo area is only
            seen against it, so that after one refused frame the next is taken whatever it shows.
    """
    quality = domain.quality
    coverage = float(frame.observed.mean())
    if coverage < quality.min_coverage:
        return (
            f"{times.iso(time)}: only {coverage:.1%} of the cells are observed, expected at least "
            f"{quality.min_coverage:.1%} (quality.min_coverage)"
        )
    seen = frame.rain[np.isin(frame.state, (ECHO, NO_ECHO))]
    if len(seen) >= FEW_CELLS and seen[0] > 0 and (seen == seen[0]).all():
        return f"{times.iso(time)}: all {len(seen)} observed cells have one value; a test signal, not rain"
    # a radar that comes back shows rain that was there before, so only like coverage is compared
    if quality.max_echo_jump and before is not None and abs(coverage - before["coverage"]) <= SAME_COVERAGE:
        now, then = float((frame.state == ECHO).mean()) / coverage, before["echo"] / max(before["coverage"], 1e-6)
        if now - then > quality.max_echo_jump:
            return (
                f"{times.iso(time)}: echo over {now:.0%} of the observed cells, {then:.0%} one frame before; more than "
                f"{quality.max_echo_jump:.0%} in {domain.cadence_minutes} minutes (quality.max_echo_jump) is "
                "interference, not rain"
            )
    return ""

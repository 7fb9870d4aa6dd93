"""When a live cycle starts, when it is given up, and why: pure rules, so that any clock can try them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipeline import times
from pipeline.catalog import Row, from_seconds
from pipeline.domain import Domain
from pipeline.volume_frames import own_inputs

# a radar is waited for if it was in so many of so many frames before
ON_TIME, OF_FRAMES = 3, 4
# who is at work starts a cycle this much after the deadline at most
SLACK = timedelta(minutes=1)
MADE_UP_FOR = "made up for"


@dataclass(frozen=True)
class Decision:
    """What is to be done about a cycle now.

    Attributes:
        state: settled (its product stands, or it was given up), wait, due or missed.
        cause: why it is due, or why it was missed.
    """

    state: Literal["settled", "wait", "due", "missed"]
    cause: str = ""


SETTLED, WAIT = Decision("settled"), Decision("wait")


def expected_radars(before: Sequence[Row]) -> set[str]:
    """Radars that are worth waiting for.

    A slower radar, or one that is silent, is in too few of the frames; one that comes back is waited for again when it
    has been on time for a while.

    Args:
        before: catalog rows of the frames before, the newest last.
    """
    recent = before[-OF_FRAMES:]
    seen = Counter(radar for row in recent for radar in {one["radar"] for one in own_inputs(row)})
    return {radar for radar, count in seen.items() if count >= min(ON_TIME, len(recent))}


def too_late(now: datetime) -> str:
    """Why a cycle whose frame is there is given up."""
    return f"nothing was at work until {times.iso(now)}, which is too late for it"


class Frames:
    """Rows of a domain's frames by valid time, as far back as ``OF_FRAMES`` and the input of a forecast need."""

    def __init__(self, rows: Mapping[datetime, Row]) -> None:
        self.rows = rows
        self._times = sorted(rows)

    def get(self, time: datetime) -> Row | None:
        """The row of an instant; None if it has no frame."""
        return self.rows.get(time)

    def before(self, time: datetime) -> list[Row]:
        """The newest ``OF_FRAMES`` rows before an instant, the newest last."""
        end = bisect_left(self._times, time)
        return [self.rows[t] for t in self._times[max(0, end - OF_FRAMES) : end]]


def decide(domain: Domain, time: datetime, now: datetime, standing: Row | None, frames: Frames) -> Decision:
    """What is to be done about the cycle of ``time``.

    Args:
        standing: its newest row in the catalog; None if nothing is recorded.
    """
    rules = domain.lateness
    frame = frames.get(time)
    deadline, end = (time + timedelta(seconds=s) for s in (rules.deadline_s, rules.grace_s))
    if standing is not None and standing["state"] == "published":
        return _reissue(domain, time, now, standing, frames, end)
    if frame is None:
        if now <= end:
            return WAIT
        return SETTLED if standing is not None else Decision("missed")
    if standing is not None and frame["framed_at"] <= standing["issue_time"]:
        return SETTLED  # it was tried with this frame
    if now > end:
        if standing is not None:
            return SETTLED
        return Decision("missed", too_late(now))
    lacking = _lacking(frames, time)
    if now < deadline:
        return WAIT if lacking else Decision("due", "complete")
    arrived = from_seconds(frame["arrived_at"])
    if now - max(arrived, time) > deadline - time + SLACK:
        return Decision("due", f"{MADE_UP_FOR}: nothing was at work at its time")
    if arrived > deadline:
        after = (arrived - time).total_seconds()
        return Decision("due", f"late: what its frame is made from came {after:.0f} s after its time")
    if lacking:
        return Decision("due", f"deadline: without {', '.join(sorted(lacking))}")
    return Decision("due", "complete")


def _lacking(frames: Frames, time: datetime) -> set[str]:
    """Radars that are waited for and are not in the frame of an instant; none if there is no frame."""
    frame = frames.get(time)
    if frame is None:
        return set()
    return expected_radars(frames.before(time)) - {volume["radar"] for volume in own_inputs(frame)}


def _reissue(
    domain: Domain,
    time: datetime,
    now: datetime,
    standing: Row,
    frames: Frames,
    end: datetime,
) -> Decision:
    """A further revision, when the frames are complete; or at the end of the grace, if they are better than before."""
    if not domain.lateness.reissue or now > end + domain.cadence:
        return SETTLED
    inputs = [time - n * domain.cadence for n in range(domain.input_frames)]
    rows = {t: frames.get(t) for t in inputs}
    changed = [t for t, row in rows.items() if row is not None and row["framed_at"] > standing["issue_time"]]
    if changed and (now >= end or not _lacking(frames, time)):
        return Decision("due", f"reissue: {', '.join(map(times.iso, changed))} came or grew after the forecast")
    return WAIT if now <= end else SETTLED

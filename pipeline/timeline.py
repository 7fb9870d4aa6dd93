"""The cycles of a domain's last day, instant by instant: what became of each, and what is missing."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Literal

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.promotion import in_use

DAY = timedelta(hours=24)
# a forecast that is started at its deadline is out by then
MAKING = timedelta(seconds=60)
# a cycle is given up when its grace is over, and recorded a little later
RECORDING = timedelta(seconds=120)
# no row, although the live process was to make one
UNACCOUNTED = "not accounted for: no forecast and no reason is recorded"

State = Literal["model", "fallback", "skipped", "waiting", "unaccounted", "not_live"]


@dataclass(frozen=True)
class Cycle:
    """What became of an instant.

    Attributes:
        state: issued by the ``model`` or a ``fallback``; ``skipped`` with a reason; ``waiting`` while its grace lasts;
            ``unaccounted`` if nothing is recorded after that, which should never be; ``not_live`` before the first one.
        correlation: of its oldest and newest input frame; None if it is not known.
    """

    reference_time: datetime
    state: State
    method: str = ""
    reason: str = ""
    model_checksum: str = ""
    correlation: float | None = None
    issue_time: float = 0.0


@dataclass(frozen=True)
class Gap:
    """Instants in a row without a forecast, and the reasons, each once."""

    first: datetime
    last: datetime
    cycles: int
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """As in 02:10 to 03:00, 6 cycles: no frame at the reference time."""
        when = f"{self.first:%H:%M}" if self.cycles == 1 else f"{self.first:%H:%M} to {self.last:%H:%M}"
        return f"{when}, {self.cycles} cycle{'s' * (self.cycles > 1)}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Timeline:
    """The last day of a domain.

    Attributes:
        since: first instant that was to be forecast live; None if there was none.
        cycles: every instant of the axis in the last 24 hours, rising.
        newest: the newest issued forecast, of whatever day; None if there is none.
        missed: instants after the newest forecast whose forecast should be out: their deadline is over, or they were
            skipped.
        why_missed: reason of the newest of those that has one; else what is known of the frames.
        newest_frame: of whatever day; None if there is none.
        counts: instants by state.
        gaps: runs of skipped and unaccounted instants.
        fallbacks: why a fallback served in the last day, times left out, and how often.
        fallbacks_in_a_row: newest issued forecasts that are all by a fallback.
        model_asked: name of the model that should serve.
    """

    since: datetime | None
    cycles: tuple[Cycle, ...]
    newest: Cycle | None
    missed: int
    why_missed: str
    newest_frame: datetime | None
    counts: dict[str, int]
    gaps: tuple[Gap, ...]
    fallbacks: dict[str, int]
    fallbacks_in_a_row: int
    model_asked: str


def read_timeline(catalog: Catalog, domain: Domain, now: datetime) -> Timeline:
    """What the catalog knows of a domain's issued forecasts of the last 24 hours."""
    c = tables.cycles.c
    issued = sa.select(tables.cycles).where(c.domain == domain.name, c.kind == "issued")
    first = times.seconds(now - DAY)
    rows = catalog.read(issued.where(c.reference_time >= first).order_by(c.reference_time, c.revision))
    by_time = {row["reference_time"]: row for row in rows}  # the newest revision is the last
    newest = catalog.read(
        issued.where(c.state == "published").order_by(c.reference_time.desc(), c.revision.desc()).limit(1)
    )
    feed = catalog.read(sa.select(tables.feeds.c.since).where(tables.feeds.c.domain == domain.name))
    since = tables.from_seconds(feed[0]["since"]) if feed else None
    cycles = tuple(
        _cycle(domain, time, by_time.get(times.seconds(time)), since, now)
        for time in times.slots(now - DAY + timedelta(seconds=1), now, domain.cadence)
    )
    newest_cycle = (
        _cycle(domain, tables.from_seconds(newest[0]["reference_time"]), newest[0], since, now) if newest else None
    )
    f = tables.frames.c
    seconds = catalog.read(sa.select(sa.func.max(f.valid_time).label("time")).where(f.domain == domain.name))[0]["time"]
    frame = None if seconds is None else tables.from_seconds(seconds)
    missed, why = _missed(domain, cycles, newest_cycle, frame, since, now)
    issued_by = [cycle.state for cycle in reversed(cycles) if cycle.state in ("model", "fallback")]
    return Timeline(
        since=since,
        cycles=cycles,
        newest=newest_cycle,
        missed=missed,
        why_missed=why,
        newest_frame=frame,
        counts=dict(Counter(cycle.state for cycle in cycles)),
        gaps=tuple(_gaps(cycles)),
        fallbacks=dict(Counter(f"{c.method}: {_plain(c.reason)}" for c in cycles if c.state == "fallback")),
        fallbacks_in_a_row=next((n for n, state in enumerate(issued_by) if state == "model"), len(issued_by)),
        model_asked=in_use(catalog, domain),
    )


def _cycle(domain: Domain, time: datetime, row: Row | None, since: datetime | None, now: datetime) -> Cycle:
    if row is None:
        grace = timedelta(seconds=domain.lateness.grace_s)
        if since is None or time < since:
            return Cycle(time, "not_live")
        if now <= time + grace + RECORDING:
            return Cycle(time, "waiting")
        return Cycle(time, "unaccounted", reason=UNACCOUNTED)
    state: State = "skipped"
    if row["state"] == "published":
        state = "fallback" if row["reason"] else "model"
    return Cycle(
        reference_time=time,
        state=state,
        method=row["method"],
        reason=row["reason"],
        model_checksum=row["model_checksum"],
        correlation=row["correlation"],
        issue_time=row["issue_time"],
    )


def _missed(
    domain: Domain,
    cycles: tuple[Cycle, ...],
    newest: Cycle | None,
    frame: datetime | None,
    since: datetime | None,
    now: datetime,
) -> tuple[int, str]:
    """Instants after the newest forecast, from the beginning of live operation, that a user misses by now; and why."""
    if since is None:
        return 0, ""
    before = since - domain.cadence
    after = max(before, newest.reference_time) if newest else before
    due = now - timedelta(seconds=domain.lateness.deadline_s) - MAKING
    # what was given up is missed at once; older than the last day are counted, not read
    skipped = [cycle for cycle in cycles if cycle.reference_time > after and cycle.state == "skipped"]
    last = max([due, *(cycle.reference_time for cycle in skipped)])
    missed = max(0, (last - after) // domain.cadence)
    if not missed:
        return 0, ""
    if skipped:
        return missed, skipped[-1].reason
    if frame is None or frame <= after:
        return missed, f"no frame has come since {frame:%H:%M} UTC" if frame else "no frame has ever come"
    return missed, f"the frame of {frame:%H:%M} UTC is there: the live process is behind, or down"


def _gaps(cycles: tuple[Cycle, ...]) -> Iterator[Gap]:
    for missing, run in groupby(cycles, lambda cycle: cycle.state in ("skipped", "unaccounted")):
        if missing:
            members = list(run)
            reasons = dict.fromkeys(_plain(cycle.reason) for cycle in members)
            yield Gap(members[0].reference_time, members[-1].reference_time, len(members), tuple(reasons))


def _plain(reason: str) -> str:
    """A reason without its times, so that equal ones are seen to be equal."""
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?Z"
    return re.sub(rf"( (of|at|until|since))?:? {time}(, {time})*", "", reason)

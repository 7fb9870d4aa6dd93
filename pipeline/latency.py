"""How long issued forecasts took, from the last sweep to the published file, from the rows of the catalog alone.

What the catalog does not know (after a rebuild, or where a frame was made anew after its forecast) is None, never 0.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.lateness import MADE_UP_FOR

# volumes are named up to so long before the instant whose frame they make, or after it
NAMED_BEFORE = timedelta(hours=1)
# names of the spans, in the order of work, and what they are
SPANS = {
    "arrival": "last sweep to arrival",
    "framing": "arrival to frame",
    "forecast": "frame to published",
    "total": "last sweep to published",
}


@dataclass(frozen=True)
class Latency:
    """One published forecast; wall clock in seconds since 1970, None where it is not known.

    Attributes:
        measured: end of the last sweep of its newest frame; of a composite the time in its content; the reference time
            where neither is known.
        arrived: the last file of that frame.
        framed: when the frame was written.
        published: when the product was complete.
        stages: seconds of read, forecast and write.
    """

    domain: str
    reference_time: datetime
    revision: int
    measured: float | None
    arrived: float | None
    framed: float | None
    published: float
    stages: dict[str, float]

    @property
    def spans(self) -> dict[str, float]:
        """Seconds of each of ``SPANS`` that is known. One that would be negative, as by a wrong clock, is not."""
        steps = {
            "arrival": (self.measured, self.arrived),
            "framing": (self.arrived, self.framed),
            "forecast": (self.framed, self.published),
            "total": (self.measured, self.published),
        }
        found = {n: b - a for n, (a, b) in steps.items() if a is not None and b is not None and b >= a}
        return found | self.stages


@dataclass(frozen=True)
class Spread:
    """Median and 95 % quantile, seconds, of so many forecasts."""

    median: float
    p95: float
    count: int


def latencies(catalog: Catalog, domain: str, start: datetime, end: datetime) -> list[Latency]:
    """Of every product that was issued in its time, with a reference time in [start, end], rising.

    What was made up for after a pause, and reissues, tell nothing of how fast the system is.
    """
    c, f, v = tables.cycles.c, tables.frames.c, tables.volumes.c
    first, last = times.seconds(start), times.seconds(end)
    issued = c.domain == domain, c.kind == "issued", c.state == "published", c.reference_time.between(first, last)
    in_time = c.revision == 1, c.cause.not_like(f"{MADE_UP_FOR}%")
    cycles = catalog.read(
        sa.select(c.reference_time, c.revision, c.issue_time, c.stages)
        .where(*issued, *in_time)
        .order_by(c.reference_time)
    )
    if not cycles:
        return []
    of_domain = sa.select(f.valid_time, f.source_key, f.arrived_at, f.framed_at).where(
        f.domain == domain, f.valid_time.between(first, last)
    )
    frames = {row["valid_time"]: row for row in catalog.read(of_domain)}
    used = sa.and_(
        v.domain == domain,
        v.nominal_time.between(times.seconds(start - NAMED_BEFORE), times.seconds(end + NAMED_BEFORE)),
        v.state.in_(("framed", "partial")),
        v.measured_until > 0,
    )
    # volumes belong to an instant; a composite is known by its key
    by_slot = sa.select(v.slot, sa.func.max(v.measured_until).label("end")).where(used, v.slot > 0).group_by(v.slot)
    ends: dict[int | str, float] = {row["slot"]: row["end"] for row in catalog.read(by_slot)}
    for row in catalog.read(sa.select(v.key, v.measured_until).where(used, v.slot == 0)):
        ends[row["key"]] = row["measured_until"]
    return [_latency(domain, row, frames.get(row["reference_time"]), ends) for row in cycles]


def spreads(found: Sequence[Latency]) -> dict[str, Spread]:
    """Of every span and stage that any of the forecasts knows."""
    values: dict[str, list[float]] = {}
    for one in found:
        for name, seconds in one.spans.items():
            values.setdefault(name, []).append(seconds)
    order = [name for name in (*SPANS, "read", "forecast_model", "write") if name in values]
    return {
        name: Spread(statistics.median(values[name]), _quantile(sorted(values[name]), 0.95), len(values[name]))
        for name in order
    }


def _latency(domain: str, cycle: Row, frame: Row | None, ends: dict[int | str, float]) -> Latency:
    known = json.loads(cycle["stages"] or "{}")
    # the model's own time is a part of the span that is called forecast
    stages = {"forecast_model" if name == "forecast" else name: float(seconds) for name, seconds in known.items()}
    # the row holds the clock when writing began, since the file itself says it
    published = float(cycle["issue_time"]) + stages.get("write", 0.0)
    if frame is not None and frame["framed_at"] > cycle["issue_time"]:
        frame = None  # it was made anew since, and no longer tells what the forecast was made from
    time = cycle["reference_time"]
    measured = None if frame is None else ends.get(time, ends.get(frame["source_key"]))
    return Latency(
        domain=domain,
        reference_time=tables.from_seconds(time),
        revision=cycle["revision"],
        measured=measured if measured is not None else float(time),
        arrived=(frame["arrived_at"] or None) if frame else None,
        framed=(frame["framed_at"] or None) if frame else None,
        published=published,
        stages=stages,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values, as numpy has it."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

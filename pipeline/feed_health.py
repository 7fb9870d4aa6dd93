"""How the source of a domain does: the last poll, its fault, and when each radar was last heard."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.settings import Settings, hide_secrets

DAY = timedelta(hours=24)
# silence that is shown where no alert is wanted
SILENT_MINUTES = 30.0
USABLE = ("framed", "partial", "duplicate")
COMPOSITE = "composite"


@dataclass(frozen=True)
class Radar:
    """A radar that gave something usable in the last day; ``composite`` where the source names none.

    Attributes:
        last: nominal time of its newest volume.
        state: ``on time`` for the next cycle, ``late``, or ``silent`` for longer than the settings say.
        volumes: usable ones of the last 24 hours.
        unusable: others of the last 24 hours.
    """

    name: str
    last: datetime
    age_minutes: float
    state: Literal["on time", "late", "silent"]
    volumes: int
    unusable: int


@dataclass(frozen=True)
class Feed:
    """The source of a domain as the live process sees it; None where it never did.

    Attributes:
        polled_at: the last poll that ended well.
        fault_at: the last poll, if it failed.
        fault: why.
        newest_problem: reason of the newest of the files of the last 24 hours that could not be used.
    """

    polled_at: datetime | None
    fault_at: datetime | None
    fault: str
    radars: tuple[Radar, ...]
    newest_problem: str


def read_feed(settings: Settings, catalog: Catalog, domain: Domain, now: datetime) -> Feed:
    """What the catalog knows of a domain's source."""
    rows = catalog.read(sa.select(tables.feeds).where(tables.feeds.c.domain == domain.name))
    radars, problem = _radars(settings, catalog, domain, now), _newest_problem(catalog, domain, now)
    if not rows:
        return Feed(None, None, "", radars, problem)
    polled, failed = (
        tables.from_seconds(rows[0][name]) if rows[0][name] else None for name in ("polled_at", "fault_at")
    )
    return Feed(polled, failed, hide_secrets(rows[0]["fault"]) if failed else "", radars, problem)


def _newest_problem(catalog: Catalog, domain: Domain, now: datetime) -> str:
    v = tables.volumes.c
    unusable = v.state.in_(("quarantined", *tables.RETRIED))
    query = sa.select(v.reason).where(v.domain == domain.name, v.nominal_time >= times.seconds(now - DAY), unusable)
    rows = catalog.read(query.order_by(v.nominal_time.desc(), v.key.desc()).limit(1))
    return rows[0]["reason"] if rows else ""


def _radars(settings: Settings, catalog: Catalog, domain: Domain, now: datetime) -> tuple[Radar, ...]:
    v = tables.volumes.c
    usable = v.state.in_(USABLE)
    lately = v.nominal_time.between(times.seconds(now - DAY), times.seconds(now + domain.cadence))
    time = sa.case((usable, v.nominal_time))
    query = sa.select(
        v.radar,
        sa.func.max(time).label("last"),
        sa.func.min(time).label("first"),
        sa.func.count(time).label("usable"),
        sa.func.count().label("all"),
    ).where(v.domain == domain.name, lately)
    found = []
    for row in catalog.read(query.group_by(v.radar).order_by(v.radar)):
        if row["last"] is None:
            continue  # nothing but bad files; they are told of as such
        last = tables.from_seconds(row["last"])
        # a radar may be slower than the cadence
        spacing = timedelta(seconds=(row["last"] - row["first"]) / max(row["usable"] - 1, 1))
        expected = max(spacing, domain.cadence) + timedelta(seconds=domain.lateness.deadline_s)
        silent = timedelta(minutes=settings.alerts.radar_silent_minutes or SILENT_MINUTES)
        state: Literal["on time", "late", "silent"] = "silent" if now - last > silent else "late"
        if now - last <= expected and state != "silent":
            state = "on time"
        age = max(0.0, (now - last).total_seconds() / 60)
        name = row["radar"] or COMPOSITE
        found.append(Radar(name, last, round(age, 1), state, row["usable"], row["all"] - row["usable"]))
    return tuple(found)

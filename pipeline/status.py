"""What an operator sees: how each domain does, in numbers and in words. Catalog and root are only read.

``nowcast status`` prints it, ``pipeline.status_page`` draws it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from pipeline import alerts, times
from pipeline import catalog as tables
from pipeline.alert_rules import FAULT_LASTS
from pipeline.catalog import Catalog, Row
from pipeline.disk import GB, Disk, read_disk
from pipeline.domain import Domain
from pipeline.feed_health import COMPOSITE, Feed, read_feed
from pipeline.heartbeat import LIVE
from pipeline.latency import Spread, latencies, spreads
from pipeline.settings import Settings
from pipeline.storage import Store
from pipeline.timeline import DAY, Timeline, read_timeline
from pipeline.warnings.watch import pending

Level = Literal["good", "warn", "bad", "off"]
# rules whose facts take reading of scores or products, so that only their alerts tell
ONLY_ALERTS = ("frozen_feed", "fallen_scores", "drift")
WORST_FIRST: tuple[Level, ...] = ("bad", "warn", "good", "off")
# names of the levels, for people
WORDS: dict[Level, str] = {"good": "OK", "warn": "CHECK", "bad": "NO FORECAST", "off": "not live"}
# so far back forecasts that are not verified are counted
UNSCORED_DAYS = 30


@dataclass(frozen=True)
class DomainStatus:
    """A domain.

    Attributes:
        level: ``bad`` if forecasts that users wait for are missing, ``warn`` if something else is wrong, ``off`` if it
            is not forecast live.
        problems: in words, the worst first.
        frame_age_minutes, forecast_age_minutes: since the newest frame and the reference time of the newest issued
            forecast; None if there is none.
        latency: by name of ``latency.SPANS`` and stage, seconds, of the last 24 hours.
        verification_waiting: forecasts whose time is over and of which nothing is verified.
        unsent_warnings: messages of place warnings that no webhook took so far.
    """

    name: str
    level: Level
    problems: tuple[str, ...]
    cadence_minutes: int
    model_asked: str
    newest_frame: datetime | None
    frame_age_minutes: float | None
    newest_forecast: datetime | None
    forecast_age_minutes: float | None
    timeline: Timeline
    feed: Feed
    latency: dict[str, Spread]
    verification_waiting: int
    unsent_warnings: int


@dataclass(frozen=True)
class Status:
    """Everything, as of ``now``; the level is the worst of all, and the headline says why.

    Attributes:
        unnamed: domains with frames in the store that the settings do not name.
    """

    now: datetime
    level: Level
    headline: str
    domains: tuple[DomainStatus, ...]
    problems: tuple[str, ...]
    alerts: tuple[Row, ...]
    disk: Disk
    leases: tuple[Row, ...]
    unnamed: tuple[str, ...] = ()


def read_status(settings: Settings, store: Store, catalog: Catalog, now: datetime) -> Status:
    """How everything stands.

    Raises:
        StoreUnavailable: the catalog cannot be used.
    """
    rows = alerts.standing(catalog, now - DAY)
    stands = [row for row in rows if not row["ended_at"]]
    domains = tuple(
        _domain(settings, store, catalog, settings.domains[name], stands, now) for name in sorted(settings.domains)
    )
    disk = read_disk(store.root)
    leases = tuple(catalog.held_leases())
    watched = any(domain.timeline.since is not None for domain in domains)
    at_work = any(lease["name"] == LIVE for lease in leases)
    problems = tuple(_system_problems(settings, disk, nobody=watched and not at_work))
    levels: list[Level] = [domain.level for domain in domains] + ["warn"] * bool(problems)
    level: Level = min(levels, key=WORST_FIRST.index, default="off")
    return Status(
        now=now,
        level=level,
        headline=_headline(domains, problems),
        domains=domains,
        problems=problems,
        alerts=tuple(_alert(row, now) for row in rows),
        disk=disk,
        leases=leases,
        unnamed=tuple(name for name in store.folders(store.root / "archive") if name not in settings.domains),
    )


def _domain(
    settings: Settings, store: Store, catalog: Catalog, domain: Domain, stands: list[Row], now: datetime
) -> DomainStatus:
    timeline, feed = read_timeline(catalog, domain, now), read_feed(settings, catalog, domain, now)
    c = tables.cycles.c
    over = times.seconds(now - domain.horizon - domain.cadence)
    unscored = sa.select(sa.func.count().label("n")).where(
        c.domain == domain.name,
        c.state == "published",
        c.revision == 1,  # reissues are not verified
        c.verified == "",
        c.reference_time.between(over - UNSCORED_DAYS * 86400, over),
    )
    unsent = pending(store, domain.name)
    found = list(_problems(domain, timeline, feed, unsent, now))
    found += [("warn", row["text"]) for row in stands if row["domain"] == domain.name and row["kind"] in ONLY_ALERTS]
    level: Level = min((level for level, _ in found), key=WORST_FIRST.index, default="good")
    if timeline.since is None and level == "good":
        level = "off"
    frame = timeline.newest_frame
    forecast = timeline.newest.reference_time if timeline.newest else None
    return DomainStatus(
        name=domain.name,
        level=level,
        problems=tuple(text for _, text in sorted(found, key=lambda one: WORST_FIRST.index(one[0]))),
        cadence_minutes=domain.cadence_minutes,
        model_asked=timeline.model_asked,
        newest_frame=frame,
        frame_age_minutes=_age(frame, now),
        newest_forecast=forecast,
        forecast_age_minutes=_age(forecast, now),
        timeline=timeline,
        feed=feed,
        latency=spreads(latencies(catalog, domain.name, now - DAY, now)),
        verification_waiting=catalog.read(unscored)[0]["n"],
        unsent_warnings=unsent,
    )


def _problems(
    domain: Domain, timeline: Timeline, feed: Feed, unsent: int, now: datetime
) -> Iterator[tuple[Level, str]]:
    """What is wrong with a domain that is forecast live."""
    if timeline.missed:
        missed = f"no forecast for {timeline.missed} cycles ({timeline.missed * domain.cadence_minutes} minutes)"
        said = missed if timeline.missed > 1 else "the newest forecast is overdue"
        yield "bad" if timeline.missed > 1 else "warn", f"{said}: {timeline.why_missed}"
    if feed.fault_at is not None:
        yield "warn", f"the source cannot be polled: {feed.fault}"
    elif feed.polled_at is not None and now - feed.polled_at > FAULT_LASTS:
        minutes = (now - feed.polled_at).total_seconds() / 60
        yield "warn", f"the source was last polled {minutes:.0f} minutes ago; is the live process running?"
    newest = timeline.newest
    if newest is not None and newest.state == "fallback" and timeline.fallbacks_in_a_row:
        row = timeline.fallbacks_in_a_row
        yield "warn", f"{newest.method} serves instead of {timeline.model_asked} ({row} in a row): {newest.reason}"
    if timeline.since is not None:
        silent = [radar.name for radar in feed.radars if radar.state == "silent" and radar.name != COMPOSITE]
        if silent:
            named = ", ".join(silent[:5]) + f" and {len(silent) - 5} more" * (len(silent) > 5)
            yield "warn", f"{len(silent)} of {len(feed.radars)} radars silent: {named}"
    if lost := timeline.counts.get("unaccounted", 0):
        yield "warn", f"{lost} cycles of the last 24 hours are not accounted for"
    if unsent:
        yield "warn", f"{unsent} messages of place warnings wait for their webhook"


def _system_problems(settings: Settings, disk: Disk, nobody: bool) -> Iterator[str]:
    if nobody:
        yield "no live process is at work; a watchdog, where one is scheduled, does what is due"
    if disk.free is not None and disk.free / GB < settings.alerts.free_gb:
        yield f"only {disk.free / GB:.1f} GB are free on the disk of the root"


def _headline(domains: tuple[DomainStatus, ...], problems: tuple[str, ...]) -> str:
    """One sentence: is anything wrong, where, and what."""
    wrong = [domain for level in ("bad", "warn") for domain in domains if domain.level == level]
    if wrong:
        others = f"; and {len(wrong) - 1} more of {len(domains)} domains" * (len(wrong) > 1)
        return f"{wrong[0].name}: {wrong[0].problems[0]}{others}"
    if problems:
        return problems[0]
    live = [domain for domain in domains if domain.level == "good"]
    if not live:
        return "no domain is forecast live"
    every = "the domain" if len(live) == 1 else f"all {len(live)} live domains"
    return f"forecasts of {every} are on time"


def _alert(row: Row, now: datetime) -> Row:
    """For people and JSON: times as such; ``ended_at`` is None while it stands."""
    raised_at = tables.from_seconds(row["raised_at"])
    ended_at = tables.from_seconds(row["ended_at"]) if row["ended_at"] else None
    return {**row, "raised_at": raised_at, "ended_at": ended_at, "age_minutes": _age(raised_at, now)}


def _age(time: datetime | None, now: datetime) -> float | None:
    return None if time is None else round(max(0.0, (now - time).total_seconds() / 60), 1)

"""Alerts for the operator: raised once, ended once, told by log, webhook and event.

The rules are in ``pipeline.alert_rules``.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from pipeline import alert_rules as rules
from pipeline import catalog as tables
from pipeline import times
from pipeline.alert_rules import Finding
from pipeline.catalog import Catalog, Lease, Row
from pipeline.disk import read_disk
from pipeline.domain import Domain
from pipeline.drift import read_inputs
from pipeline.errors import LeaseLost, StoreUnavailable
from pipeline.feed_health import read_feed
from pipeline.settings import Settings
from pipeline.storage import Store, safe_name
from pipeline.timeline import read_timeline
from pipeline.warnings.webhook import host_of, post

if TYPE_CHECKING:
    from pipeline.verification.quality import Skill

log = logging.getLogger(__name__)

# a radar that was not heard for so long is no longer expected; a message as old is of no use to anybody
FORGOTTEN = timedelta(days=7)
# of writing transactions; no domain has such a name
SCOPE = "alerts/"

Event = Literal["raised", "ended"]
EVENTS: tuple[Event, ...] = ("raised", "ended")
# name of the event, what it is about (the same for both events of an alert), and ``Told.to_json``
Emit = Callable[[str, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Told:
    """An alert that was raised, or is over."""

    event: Event
    domain: str
    kind: str
    subject: str
    text: str
    raised_at: datetime
    time: datetime

    @property
    def resource(self) -> str:
        """What it is about, as in nowcast.alert.home.radar_silent.KLIX."""
        subject = safe_name(self.subject) if self.subject else ""
        return ".".join(filter(None, ("nowcast.alert", self.domain or "system", self.kind, subject)))

    def to_json(self) -> dict[str, Any]:
        """The text and all fields; ``id`` is the same however often a message is sent."""
        raised_at = times.iso(self.raised_at)
        return {
            "id": f"{self.resource}/{raised_at}/{self.event}",
            "text": f"{self.domain or 'system'}: {'over: ' * (self.event == 'ended')}{self.text}",
            "event": self.event,
            "domain": self.domain,
            "kind": self.kind,
            "subject": self.subject,
            "raised_at": raised_at,
            "time": times.iso(self.time),
        }


def check(
    settings: Settings,
    store: Store,
    catalog: Catalog,
    now: datetime,
    emit: Emit | None = None,
    findings: Sequence[Finding] = (),
) -> list[Told]:
    """Compare the catalog with the rules, and tell what is new.

    What stands is in the catalog, so that a restart repeats nothing. A webhook that does not take a message is tried
    again with the next check, which it may hold up for ten seconds. If another process is checking, nothing is done.

    Args:
        emit: gets every event once, as a Prefect event for example.
        findings: of others, beside those of the rules.

    Raises:
        StoreUnavailable: the catalog cannot be used.
    """
    with catalog.lease("alerts") as lease:
        if lease is None:
            return []
        every = [*_findings(settings, store, catalog, now), *findings]
        try:
            told = _record(catalog, lease, every, now)
        except LeaseLost as err:
            log.warning("%s", err)
            return []
        for one in told:
            message = one.to_json()
            log.warning("alert %s: %s", one.event, message["text"])
            if emit is not None:
                emit(f"nowcast.alert.{one.event}", one.resource, message)
        _deliver(settings, catalog, now)
    return told


def standing(catalog: Catalog, ended_since: datetime) -> list[Row]:
    """Rows of the alerts that stand, or ended since; the newest first."""
    a = tables.alerts.c
    wanted = sa.or_(a.ended_at == 0, a.ended_at >= ended_since.timestamp())
    return catalog.read(
        sa.select(tables.alerts).where(wanted).order_by(a.raised_at.desc(), a.domain, a.kind, a.subject)
    )


def _findings(settings: Settings, store: Store, catalog: Catalog, now: datetime) -> Iterator[Finding]:
    yield from rules.low_disk(read_disk(store.root), settings.alerts)
    for domain in settings.domains.values():
        timeline, feed = read_timeline(catalog, domain, now), read_feed(settings, catalog, domain, now)
        yield from rules.no_forecast(domain, timeline, settings.alerts)
        yield from rules.fallback(domain, timeline, settings.alerts)
        yield from rules.faulty_cycles(domain, timeline)
        yield from rules.silent_radars(domain, feed, timeline.since, now, settings.alerts)
        yield from rules.feed_fault(domain, feed, now)
        yield from rules.frozen_feed(domain, timeline)
        yield from _inputs(settings, domain, store, catalog, now)
        yield from _scores(settings, domain, store, catalog, now)


def _inputs(settings: Settings, domain: Domain, store: Store, catalog: Catalog, now: datetime) -> Iterator[Finding]:
    if not settings.alerts.drift:
        return
    try:
        found = read_inputs(domain, store, catalog, now)
    except (StoreUnavailable, OSError) as err:
        log.warning("the rain of %s cannot be compared with that of the training: %s", domain.name, err)
        yield Finding(domain.name, "drift", "inputs", "unclear")
        return
    yield from rules.drifted_inputs(domain, found, settings.alerts)


def _scores(settings: Settings, domain: Domain, store: Store, catalog: Catalog, now: datetime) -> Iterator[Finding]:
    if not settings.alerts.csi_drop and not settings.alerts.drift:
        return
    s = tables.scores.c
    lately = s.day >= times.seconds(now - timedelta(days=31))
    query = sa.select(s.path, s.content_digest).where(s.domain == domain.name, s.kind == "issued", lately)
    sums = tuple((row["path"], row["content_digest"]) for row in catalog.read(query.order_by(s.path)))
    key = (str(store.root), domain.model_dump_json(), times.seconds(now) // 3600, sums)
    try:
        day, month = _skills(_Read(key, domain, store, catalog, now))
    except (StoreUnavailable, OSError, ValueError, KeyError) as err:
        log.warning("the scores of %s cannot be compared: %s", domain.name, err)
        for kind, subject in (("fallen_scores", ""), ("drift", "scores")):
            yield Finding(domain.name, kind, subject, "unclear")
        return
    yield from rules.fallen_scores(domain, day, month, settings.alerts)
    yield from rules.drifted_scores(domain, month, settings.alerts)


@dataclass(frozen=True)
class _Read:
    """What skill is read from; the same for an equal key."""

    key: tuple[Any, ...]
    domain: Domain = field(compare=False)
    store: Store = field(compare=False)
    catalog: Catalog = field(compare=False)
    now: datetime = field(compare=False)


@lru_cache(maxsize=256)
def _skills(read: _Read) -> "tuple[Skill | None, Skill | None]":
    """Of the last day and thirty days; read anew every hour and when there are new scores, not every minute."""
    from pipeline.verification.quality import lately_and_before

    return lately_and_before(read.domain, read.store, read.catalog, read.now)


def _record(catalog: Catalog, lease: Lease, findings: list[Finding], now: datetime) -> list[Told]:
    """Bring the table of alerts up to the findings; what was raised and ended."""
    told: list[Told] = []
    found = {(one.domain, one.kind, one.subject): one for one in findings}
    with catalog.write(SCOPE) as connection:
        lease.check(connection)
        query = sa.select(tables.alerts).where(tables.alerts.c.ended_at == 0)
        stands = {
            (row["domain"], row["kind"], row["subject"]): dict(row) for row in connection.execute(query).mappings()
        }
        rows = []
        for key, row in stands.items():
            finding = found.get(key)
            if (
                finding is None
                and key[1] == "radar_silent"
                and now.timestamp() - row["raised_at"] < FORGOTTEN.total_seconds()
            ):
                continue  # its last volume is more than a day old, and it is silent still
            if finding is None or finding.level == "good":
                row["ended_at"] = now.timestamp()
                rows.append(row)
                told.append(_told("ended", row, now))
            elif finding.level == "bad" and finding.text != row["text"]:
                rows.append({**row, "text": finding.text})
        for key, finding in found.items():
            if finding.level == "bad" and key not in stands:
                row = dict(zip(("domain", "kind", "subject"), key, strict=True))
                row |= {"raised_at": now.timestamp(), "ended_at": 0.0, "text": finding.text, "told": ""}
                rows.append(row)
                told.append(_told("raised", row, now))
        catalog.upsert(connection, tables.alerts, rows)
    return told


def _told(event: Event, row: Row, time: datetime) -> Told:
    raised_at = tables.from_seconds(row["raised_at"])
    return Told(event, row["domain"], row["kind"], row["subject"], row["text"], raised_at, time)


def _deliver(settings: Settings, catalog: Catalog, now: datetime) -> None:
    """Send what the webhook has not got, oldest first; after a failure no more until the next check."""
    webhook = settings.alerts.webhook
    for row in _untold(catalog):
        ended = row["ended_at"] > 0
        if webhook is not None and now - tables.from_seconds(row["raised_at"]) < FORGOTTEN:
            address = webhook.get_secret_value()
            events = [
                event for event in EVENTS if (event == "raised" and not row["told"]) or (event == "ended" and ended)
            ]
            for event in events:
                message = _told(event, row, tables.from_seconds(row["ended_at" if event == "ended" else "raised_at"]))
                reason = post(address, message.to_json())
                if reason:
                    text = "the webhook at %s did not take %s: %s; the next check tries again"
                    log.warning(text, host_of(address), message.to_json()["id"], reason)
                    return
                _mark(catalog, row, event)
        else:
            _mark(catalog, row, "ended" if ended else "raised")


def _untold(catalog: Catalog) -> list[Row]:
    a = tables.alerts.c
    waiting = sa.or_(a.told == "", sa.and_(a.told == "raised", a.ended_at > 0))
    return catalog.read(sa.select(tables.alerts).where(waiting).order_by(a.raised_at, a.domain, a.kind, a.subject))


def _mark(catalog: Catalog, row: Row, told: str) -> None:
    with catalog.write(SCOPE) as connection:
        catalog.upsert(connection, tables.alerts, [{**row, "told": told}])

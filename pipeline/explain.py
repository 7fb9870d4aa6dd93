"""Why is there this product, or none: a cycle with its frames, volumes, decisions, model and verification.

Everything is read from catalog, stores and journal; nothing is changed. ``pipeline.explain_text`` makes sentences.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import packing, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame
from pipeline.explain_model import Lineage, lineage
from pipeline.frames.archive import Archive, checksum
from pipeline.ingest import AXIS_TOLERANCE
from pipeline.ingest_volumes import LONGEST_SCAN, slot_of
from pipeline.source_settings import PolarSource
from pipeline.storage import Store

PROVENANCE = (
    "input_times", "filled_times", "missing_times", "inputs_digest", "model_name", "model_limits", "radars_used",
    "radars_carried_on", "input_correlation", "frozen_feed", "software_version",
    "verified_skill_24h", "verified_skill_30d",
)  # fmt: skip


@dataclass(frozen=True)
class VolumeFacts:
    """A received file or volume, and what became of it.

    Attributes:
        used: how a frame of the cycle used it: ``taken as it is``, ``moved forward``, ...; empty if none did.
        carried: it was carried on from the instant before.
        state: of the catalog; empty if that does not know it any more.
        instant: that it was for, as far as is known.
    """

    key: str
    radar: str
    instant: str
    nominal_time: str
    arrived_at: str
    seen_at: str
    measured_until: str
    state: str
    reason: str
    used: str = ""
    carried: bool = False
    offset_s: float | None = None
    removed: float | None = None


@dataclass(frozen=True)
class FrameFacts:
    """An instant whose frame is an input.

    Attributes:
        role: in the product: measured, filled or missing; without a product measured or missing.
        stored: what the archive holds: as the catalog has it, nothing, or what is wrong.
        volumes: that made it; ``others`` came for it and did not.
    """

    time: str
    role: str
    stored: str
    sha256: str = ""
    coverage: float | None = None
    echo: float | None = None
    removed: float | None = None
    offset_s: float | None = None
    arrived_at: str = ""
    framed_at: str = ""
    volumes: tuple[VolumeFacts, ...] = ()
    others: tuple[VolumeFacts, ...] = ()


@dataclass(frozen=True)
class CycleFacts:
    """One recorded cycle: a product, or the reason why there is none.

    Attributes:
        stored: whether the product is whole.
        attributes: provenance as the product itself has it.
        delays: name -> seconds, of what is known.
        observed: lead times with an observation now, and of how many.
    """

    kind: str
    revision: int
    state: str
    method: str
    reason: str
    cause: str
    path: str
    stored: str
    issue_time: str
    content_digest: str
    correlation: float | None
    attributes: dict[str, str]
    delays: dict[str, float]
    stages: dict[str, float]
    model: Lineage | None
    verified: str
    verified_reason: str
    observed: tuple[int, int]


@dataclass(frozen=True)
class Explanation:
    """All that is known of a reference time; ``verdict`` says it in a sentence."""

    domain: str
    reference_time: str
    asked_at: str
    cadence_minutes: int
    on_axis: bool
    cycles: list[CycleFacts] = field(default_factory=list)
    frames: list[FrameFacts] = field(default_factory=list)
    feed: dict[str, str] = field(default_factory=dict)
    alerts: list[dict[str, str]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)


def explain(domain: Domain, store: Store, catalog: Catalog, time: datetime, now: datetime) -> Explanation:
    """What is known of the cycles of a reference time, issued and hindcast."""
    on_axis = times.is_slot(time, domain.cadence)
    found = Explanation(domain.name, times.iso(time), times.iso(now), domain.cadence_minutes, on_axis)
    if not on_axis:
        return found
    c = tables.cycles.c
    of_time = sa.and_(c.domain == domain.name, c.reference_time == times.seconds(time))
    rows = catalog.read(
        sa.select(tables.cycles).where(of_time).order_by((c.kind == "issued").desc(), c.kind, c.revision)
    )
    instants = [time - n * domain.cadence for n in reversed(range(domain.input_frames))]
    frames = _frame_rows(catalog, domain, instants[0], time + domain.horizon)
    read = {row["path"]: _product(store, row) for row in rows if row["state"] == "published"}
    newest = next((read[row["path"]][1] for row in reversed(rows) if row["state"] == "published"), {})
    volumes = _volume_rows(catalog, domain, instants[0], time)
    archive = Archive(store, domain)
    found.cycles.extend(_cycle(domain, store, row, read.get(row["path"], ("", {})), frames) for row in rows)
    found.frames.extend(_frame(archive, one, frames.get(times.seconds(one)), volumes, newest) for one in instants)
    feeds = catalog.read(sa.select(tables.feeds).where(tables.feeds.c.domain == domain.name))
    for feed in feeds:
        found.feed.update({k: _iso(feed[k]) for k in ("since", "polled_at", "fault_at")}, fault=feed["fault"])
    a = tables.alerts.c
    near = sa.and_(
        a.raised_at <= (time + domain.horizon).timestamp(), sa.or_(a.ended_at == 0, a.ended_at >= times.seconds(time))
    )
    for alert in catalog.read(sa.select(tables.alerts).where(a.domain == domain.name, near).order_by(a.raised_at)):
        shown = {name: str(alert[name]) for name in ("kind", "subject", "text")}
        found.alerts.append(shown | {name: _iso(alert[name]) for name in ("raised_at", "ended_at")})
    found.journal.extend(_entries(store, domain, time, instants[0], volumes))
    return found


def _frame_rows(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> dict[int, Row]:
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end))
    rows = catalog.read(sa.select(tables.frames).where(f.domain == domain.name, inside))
    return {row["valid_time"]: row for row in rows}


def _volume_rows(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> list[Row]:
    """Volumes that may have been for the instants in [start, end], or were carried on to the first."""
    v = tables.volumes.c
    first = times.seconds(start - domain.cadence - LONGEST_SCAN - AXIS_TOLERANCE)
    inside = v.nominal_time.between(first, times.seconds(end + AXIS_TOLERANCE))
    slots = v.slot.between(times.seconds(start - domain.cadence), times.seconds(end))
    query = sa.select(tables.volumes).where(v.domain == domain.name, sa.or_(inside, slots))
    polar = isinstance(domain.source, PolarSource)
    rows = catalog.read(query.order_by(v.nominal_time, v.key, v.seen_at))
    for row in rows:
        nominal = tables.from_seconds(row["nominal_time"])
        guess = slot_of(nominal, domain.cadence) if polar else times.nearest_slot(nominal, domain.cadence)
        row["instant"] = row["slot"] or times.seconds(guess)
    return rows


def _product(store: Store, row: Row) -> tuple[str, dict[str, str]]:
    """Whether a product is whole, and its provenance."""
    path = store.root / row["path"]
    try:
        data = packing.read_packed(store.get(path))
        digest = packing.checked_digest(data, path)
    except FileNotFoundError:
        return "LOST: the file is not there", {}
    except (OSError, ValueError, KeyError) as err:
        return f"DAMAGED: {err}", {}
    attributes = {name: str(data.attrs[name]) for name in PROVENANCE if str(data.attrs.get(name, ""))}
    if digest != row["content_digest"]:
        return f"CHANGED: content {digest[:12]}, the catalog has {row['content_digest'][:12]}", attributes
    return "whole", attributes


def _cycle(
    domain: Domain, store: Store, row: Row, read: tuple[str, dict[str, str]], frames: dict[int, Row]
) -> CycleFacts:
    time = tables.from_seconds(row["reference_time"])
    stored, attributes = read
    leads = [times.seconds(time + (n + 1) * domain.cadence) for n in range(domain.lead_frames)]
    newest = frames.get(row["reference_time"])
    published = row["state"] == "published"
    delays = {"from the reference time to the issue": row["issue_time"] - row["reference_time"]}
    if row["kind"] == "issued" and newest is not None and newest["arrived_at"] and newest["framed_at"]:
        delays["from the reference time to the arrival of its frame"] = newest["arrived_at"] - row["reference_time"]
        delays["from arrival to frame"] = newest["framed_at"] - newest["arrived_at"]
        delays["from frame to issue"] = row["issue_time"] - newest["framed_at"]
    made_by_network = published and bool(row["model_checksum"])
    return CycleFacts(
        kind=row["kind"],
        revision=row["revision"],
        state=row["state"],
        method=row["method"],
        reason=row["reason"],
        cause=row["cause"],
        path=row["path"],
        stored=stored,
        issue_time=_iso(row["issue_time"]),
        content_digest=row["content_digest"],
        correlation=row["correlation"],
        attributes=attributes,
        delays={name: round(seconds, 1) for name, seconds in delays.items()} if published else {},
        stages=json.loads(row["stages"] or "{}"),
        model=lineage(domain, store, str(row["method"]), row) if made_by_network else None,
        verified=row["verified"],
        verified_reason=row["verified_reason"],
        observed=(sum(lead in frames for lead in leads), len(leads)),
    )


def _frame(
    archive: Archive, time: datetime, row: Row | None, volumes: list[Row], product: dict[str, str]
) -> FrameFacts:
    roles = {name: product.get(f"{name}_times", "").split() for name in ("input", "filled", "missing")}
    role = next(
        (name for name, listed in roles.items() if times.iso(time) in listed), "missing" if row is None else "input"
    )
    role = "measured" if role == "input" else role
    inputs = {} if row is None else {(one["key"], one.get("etag")): one for one in json.loads(row["inputs"] or "[]")}
    source_key = row["source_key"] if row is not None and not inputs else ""  # of a composite
    used, others = [], []
    for volume in volumes:
        one = inputs.pop((volume["key"], volume["etag"]), None)
        here = volume["instant"] == times.seconds(time)
        if one is not None or (here and volume["key"] == source_key and volume["state"] == "framed"):
            used.append(_volume(volume, one))
        elif here:
            others.append(_volume(volume, None))
    used += [_volume(None, one) for one in inputs.values()]
    stored = _stored(archive, time, row)
    if row is None:
        return FrameFacts(times.iso(time), role, stored, others=tuple(others))
    return FrameFacts(
        time=times.iso(time),
        role=role,
        stored=stored,
        sha256=row["sha256"],
        coverage=row["coverage"],
        echo=row["echo"],
        removed=row["removed"],
        offset_s=row["offset_s"],
        arrived_at=_iso(row["arrived_at"]),
        framed_at=_iso(row["framed_at"]),
        volumes=tuple(used),
        others=tuple(others),
    )


def _stored(archive: Archive, time: datetime, row: Row | None) -> str:
    try:
        frame = archive.read(time)
    except DamagedFrame as err:
        return f"DAMAGED: {err}"
    if frame is None:
        return "nothing" if row is None else "LOST: the catalog has it, the archive does not"
    if row is None:
        return "a frame that the catalog does not know; `nowcast catalog rebuild`"
    return "whole" if checksum(frame) == row["sha256"] else "CHANGED: not the checksum of the catalog"


def _volume(row: Row | None, one: dict[str, Any] | None) -> VolumeFacts:
    row = row or {}
    one = one or {}
    return VolumeFacts(
        key=one.get("key") or row["key"],
        radar=one.get("radar") or row["radar"],
        instant=_iso(row.get("instant", 0)),
        nominal_time=_iso(row.get("nominal_time", 0)),
        arrived_at=_iso(row.get("arrived_at", 0)),
        seen_at=_iso(row.get("seen_at", 0)),
        measured_until=_iso(row.get("measured_until", 0)),
        state=row.get("state", ""),
        reason=row.get("reason", ""),
        used=one.get("aligned", ""),
        carried=bool(one.get("carried")),
        offset_s=one.get("offset_s"),
        removed=one.get("removed"),
    )


def _entries(store: Store, domain: Domain, time: datetime, first: datetime, volumes: list[Row]) -> list[dict[str, Any]]:
    """What the journal says of the cycle, its volumes, its frames and its removal."""
    keys = {row["key"] for row in volumes}
    names = {f"{kind} {times.iso(time)}" for kind in tables.KINDS}
    days = {f"{first:%Y-%m-%d}", f"{time:%Y-%m-%d}"}
    found = []
    # nothing is told of a time long before it, and a journal grows for years
    for entry in store.read_journal(f"{first - timedelta(days=2):%Y-%m-%d}"):
        of_cycle = entry.get("cycle", {})
        if entry.get("domain", of_cycle.get("domain")) != domain.name:
            continue
        removed = entry.get("part"), entry.get("name")
        gone = (removed[0] == "products" and removed[1] in names) or (removed[0] == "frames" and removed[1] in days)
        key = entry.get("volume", entry).get("key")
        if gone or key in keys or of_cycle.get("reference_time") == times.seconds(time):
            found.append(entry)
    return found


def _iso(seconds: float) -> str:
    return times.iso(tables.from_seconds(seconds)) if seconds else ""

"""Retention: what is older than the settings say goes, unless something still needs it; off by default.

Age counts from when we wrote a thing, never from the time of its data. Every removal is first a line of the journal,
then the row of the catalog goes, then the bytes: a row never points to nothing. What a kill leaves is bytes without a
row, of which the journal says that they go; the next run removes them. Bytes without a row of which the journal says
nothing stay: the catalog may be lost.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import quarantine, times
from pipeline.catalog import Catalog, Row
from pipeline.compaction import LEASE
from pipeline.domain import Domain
from pipeline.frames.archive import Archive
from pipeline.ingest import AXIS_TOLERANCE
from pipeline.retention_needs import needing, settled, training_periods
from pipeline.settings import Settings
from pipeline.storage import Store, Stored

log = logging.getLogger(__name__)

PARTS = ("products", "scores", "frames", "quarantine", "catalog")
NOT_KNOWN = "not in the catalog; `nowcast catalog rebuild` finds it"
BUSY = "another process works on it"


@dataclass(frozen=True)
class Gone:
    """What was removed, or would be: a day of frames, the products of a cycle, a file, rows of the catalog."""

    part: str
    domain: str
    name: str
    objects: int
    bytes: int
    written_at: str


@dataclass
class Housekept:
    """What one run did.

    Attributes:
        stays: part, domain and reason -> how many, and one of them.
        bytes: that went.
    """

    dry_run: bool
    gone: list[Gone] = field(default_factory=list)
    stays: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all that went."""
        return sum(one.bytes for one in self.gone)


def housekeep(
    settings: Settings,
    store: Store,
    catalog: Catalog,
    now: datetime,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Housekept:
    """Remove what is old enough and not needed; live ingest and forecasts go on meanwhile."""
    result = Housekept(dry_run)
    periods = training_periods(settings, store, catalog) if settings.retention.frames_days else {}
    journal = [e for e in store.read_journal() if e.get("event") == "removed"]
    steps = (_products, _scores, _frames, _quarantine, _rows)
    for domain in settings.domains.values():
        with catalog.lease(LEASE.format(domain.name)) as lease:
            if lease is None:
                result.problems.append(f"another process keeps house for {domain.name}")
                continue
            said = {(e["part"], e["name"]): e["recorded_at"] for e in journal if e["domain"] == domain.name}
            work = _Work(settings, domain, store, catalog, now, result, said, periods.get(domain.name, []))
            for n, (part, step) in enumerate(zip(PARTS, steps, strict=True)):
                days = getattr(settings.retention, f"{part}_days")
                if days:
                    work.older_than = now.timestamp() - timedelta(days=days).total_seconds()
                    step(work)
                else:
                    work.stay(part, "all", f"kept for ever (retention.{part}_days = 0)")
                progress(domain.name, n + 1, len(PARTS))
    return result


@dataclass
class _Work:
    """One domain; ``said`` is what the journal says was removed, and when; ``forecasts`` those that go now."""

    settings: Settings
    domain: Domain
    store: Store
    catalog: Catalog
    now: datetime
    result: Housekept
    said: dict[tuple[str, str], str]
    training: list[tuple[datetime, datetime, str]]
    older_than: float = 0.0
    forecasts: set[tuple[str, int]] = field(default_factory=set)

    def stay(self, part: str, name: str, reason: str) -> None:
        count, example = self.result.stays.get((part, self.domain.name, reason), (0, name))
        self.result.stays[part, self.domain.name, reason] = count + 1, example

    def is_young(self, part: str, name: str, files: list[Stored]) -> bool:
        """Whether one of the files was written too lately; they then stay."""
        young = any(file.written_at > self.older_than for file in files)
        if young:
            days = getattr(self.settings.retention, f"{part}_days")
            self.stay(part, name, f"written less than {days:g} days ago (retention.{part}_days)")
        return young

    def was_going(self, part: str, name: str, files: list[Stored]) -> bool:
        """Whether the journal says that just these files go: a run was killed before it had removed them."""
        newest = max(file.written_at for file in files)
        return self.said.get((part, name), "") >= times.iso(tables.from_seconds(newest))

    def go(self, part: str, name: str, files: list[Stored], objects: int = 0) -> None:
        """Note what goes, first of all in the journal."""
        newest = max((file.written_at for file in files), default=0.0)
        written_at = times.iso(tables.from_seconds(newest)) if newest else ""
        gone = Gone(part, self.domain.name, name, objects or len(files), sum(file.size for file in files), written_at)
        self.result.gone.append(gone)
        if not self.result.dry_run:
            self.store.append_journal(self.now, {"event": "removed", **vars(gone)})


def _products(work: _Work) -> None:
    """Forecasts with all that lies beside them; all revisions of a cycle together."""
    domain, store = work.domain, work.store
    latest = _latest(store, domain)
    for kind in tables.KINDS:
        folder = store.root / "products" / domain.name / kind
        groups: dict[datetime, list[Stored]] = defaultdict(list)
        for file in store.listed(folder):
            if match := re.fullmatch(rf"{domain.name}_(\d{{8}}T\d{{6}}Z)_r\d+\..*", file.path.name):
                groups[times.parse_time(match[1])].append(file)
            else:
                work.stay("products", store.relative(file.path), "not a name of ours")
        rows: dict[int, list[Row]] = defaultdict(list)
        for row in _published(work, kind):
            rows[row["reference_time"]].append(row)
        for time, files in sorted(groups.items()):
            name, its = f"{kind} {times.iso(time)}", rows.get(times.seconds(time), [])
            if work.is_young("products", name, files):
                continue
            reason = ""
            if not its and not work.was_going("products", name, files):
                reason = NOT_KNOWN
            elif times.seconds(time) == max(rows, default=0):
                reason = f"the newest {kind} product"
            elif any(row["path"] == latest for row in its):
                reason = "latest.json points to it"
            elif not all(settled(row, domain, work.now) for row in its if row["revision"] == 1):
                reason = "not fully verified"
            if reason:
                work.stay("products", name, reason)
                continue
            work.forecasts.add((kind, times.seconds(time)))
            if work.result.dry_run:
                work.go("products", name, files)
                continue
            with work.catalog.lease(f"cycle/{domain.name}/{kind}/{times.iso(time)}") as lease:
                if lease is None or _published(work, kind, time) != its:
                    work.forecasts.remove((kind, times.seconds(time)))
                    work.stay("products", name, BUSY)
                    continue
                work.go("products", name, files)
                c = tables.cycles.c
                here = (c.domain == domain.name, c.kind == kind, c.reference_time == times.seconds(time))
                with work.catalog.write(work.domain.name) as connection:
                    lease.check(connection)
                    connection.execute(sa.delete(tables.cycles).where(*here, c.state == "published"))
                # the product before its companions: with them it would be adopted as whole
                for file in sorted(files, key=lambda f: f.path.name.count(".")):
                    store.remove(file.path)


def _scores(work: _Work) -> None:
    """Files of verification sums whose forecasts are gone; of those that are there they would be made again."""
    domain, store = work.domain, work.store
    c, s = tables.cycles.c, tables.scores
    for file in store.listed(store.root / "verification" / domain.name, "**/*.nc"):
        name, kind = store.relative(file.path), file.path.parts[-3]
        if work.is_young("scores", name, [file]):
            continue
        day = times.parse_time(file.path.stem)
        first, last = times.seconds(day), times.seconds(day + timedelta(days=1)) - 1
        inside = c.reference_time.between(first, last)
        query = sa.select(c.reference_time).where(
            c.domain == domain.name, c.kind == kind, c.state == "published", inside
        )
        standing = {row["reference_time"] for row in work.catalog.read(query)}
        if standing - {time for of_kind, time in work.forecasts if of_kind == kind}:
            work.stay("scores", name, "its forecasts are still there")
            continue
        known = work.catalog.read(sa.select(s.c.path).where(s.c.path == name))
        if not known and not work.was_going("scores", name, [file]):
            work.stay("scores", name, NOT_KNOWN)
            continue
        if work.result.dry_run:
            work.go("scores", name, [file])
            continue
        with work.catalog.lease(f"scores/{name}") as lease:
            if lease is None:
                work.stay("scores", name, BUSY)
                continue
            work.go("scores", name, [file])
            with work.catalog.write(work.domain.name) as connection:
                lease.check(connection)
                connection.execute(sa.delete(s).where(s.c.path == name))
            store.remove(file.path)


def _frames(work: _Work) -> None:
    """Days of frames that nothing needs; with the rows of their volumes, so that an ingest may take both in again."""
    domain, store = work.domain, work.store
    archive, f = Archive(store, domain), tables.frames.c
    for day in archive.days():
        name = f"{day:%Y-%m-%d}"
        files = store.listed(archive.folder / f"{day:%Y/%m/%d}.zarr")
        frames = [file for file in files if file.path.name != "zarr.json"]
        if work.is_young("frames", name, frames or files):
            continue
        inside = f.valid_time.between(times.seconds(day), times.seconds(day + timedelta(days=1)) - 1)
        its = sa.and_(f.domain == domain.name, inside)
        with work.catalog.write(work.domain.name) as connection:  # frames are written under this lock
            held = {times.seconds(time) for time in archive.times_of(day)}
            known = set(connection.execute(sa.select(f.valid_time).where(its)).scalars())
            reason = next((f"training data of {model}" for a, b, model in work.training if _meets(day, a, b)), "")
            if held - known and not work.was_going("frames", name, frames):
                reason = NOT_KNOWN
            reason = reason or needing(connection, domain, day, work.now, work.forecasts)
            if reason:
                work.stay("frames", name, reason)
                continue
            work.go("frames", name, files, len(held))
            if work.result.dry_run:
                continue
            connection.execute(sa.delete(tables.frames).where(its))
            connection.execute(sa.delete(tables.volumes).where(_made(domain, day)))
        with work.catalog.write(work.domain.name) as connection:  # some may have been written anew since
            known = set(connection.execute(sa.select(f.valid_time).where(its)).scalars())
            objects = archive.objects(day)
            if not known:
                objects.remove_all()
                continue
            objects.pack({})
            for slot in objects.singles():
                if times.seconds(day + slot * domain.cadence) not in known:
                    objects.remove_single(slot)


def _made(domain: Domain, day: datetime) -> sa.ColumnElement[bool]:
    """Volumes that made the frames of a day: known, they would never be read again."""
    v = tables.volumes.c
    first, last = times.seconds(day), times.seconds(day + timedelta(days=1) - domain.cadence)
    near = v.nominal_time.between(times.seconds(day - AXIS_TOLERANCE), last + AXIS_TOLERANCE.total_seconds())
    of_day = sa.or_(v.slot.between(first, last), sa.and_(v.slot == 0, near))
    return sa.and_(v.domain == domain.name, v.state.in_(("framed", "partial", "duplicate")), of_day)


def _quarantine(work: _Work) -> None:
    """Bytes of what somebody has looked at."""
    for item in quarantine.items(work.store, work.catalog, [work.domain.name]):
        files = [file for name in item.files for file in work.store.listed(work.store.root, name)]
        if not files or work.is_young("quarantine", item.name, files):
            continue
        if not item.is_reviewed:
            work.stay("quarantine", item.name, "nobody has looked at it (`nowcast quarantine list`)")
            continue
        work.go("quarantine", item.name, files)
        if not work.result.dry_run:
            v = tables.volumes.c
            its = (v.domain == item.domain, v.key == item.key, v.etag == item.etag, v.state == "reviewed")
            with work.catalog.write(work.domain.name) as connection:
                connection.execute(sa.update(tables.volumes).where(*its).values(state="dropped"))
            for file in files:
                work.store.remove(file.path)


def _rows(work: _Work) -> None:
    """Rows of volumes that no frame and no file in quarantine needs, and of alerts that have ended."""
    v, a, f = tables.volumes.c, tables.alerts.c, tables.frames.c
    mine, older = v.domain == work.domain.name, work.older_than
    near = f.valid_time.between(v.nominal_time - 3600, v.nominal_time + 3600)
    framed = sa.exists().where(f.domain == v.domain, sa.or_(near, f.valid_time == v.slot))
    seen_at = sa.case((v.seen_at > 0, v.seen_at), else_=v.arrived_at)
    held = v.state.in_((quarantine.UNSEEN, "reviewed"))
    old_volumes = sa.and_(mine, seen_at <= older, ~held, ~framed)
    old_alerts = sa.and_(a.domain == work.domain.name, a.ended_at > 0, a.ended_at <= older)
    for name, table, old in (("volumes", tables.volumes, old_volumes), ("alerts", tables.alerts, old_alerts)):
        count = work.catalog.read(sa.select(sa.func.count().label("n")).select_from(table).where(old))[0]["n"]
        if count:
            work.go("catalog", name, [], count)
        if count and not work.result.dry_run:
            with work.catalog.write(work.domain.name) as connection:
                connection.execute(sa.delete(table).where(old))
    for reason, its in (
        ("nobody has looked at what it quarantined, or its bytes are kept", held),
        ("its frame is there", sa.and_(~held, framed)),
    ):
        query = sa.select(sa.func.count().label("n")).select_from(tables.volumes).where(mine, seen_at <= older, its)
        if count := work.catalog.read(query)[0]["n"]:
            work.result.stays["catalog", work.domain.name, reason] = count, "volumes"


def _published(work: _Work, kind: str, time: datetime | None = None) -> list[Row]:
    c = tables.cycles.c
    query = sa.select(tables.cycles).where(c.domain == work.domain.name, c.kind == kind, c.state == "published")
    return work.catalog.read(query if time is None else query.where(c.reference_time == times.seconds(time)))


def _latest(store: Store, domain: Domain) -> str:
    """The product that ``latest`` points to, below the root."""
    path = store.latest(domain.name)
    if not store.has(path):
        return ""
    try:
        return str(json.loads(store.read(path))["path"])
    except (ValueError, KeyError, TypeError) as err:
        log.warning("%s is damaged (%s); the newest product stays in any case", path, err)
        return ""


def _meets(day: datetime, start: datetime, end: datetime) -> bool:
    return start < day + timedelta(days=1) and day <= end

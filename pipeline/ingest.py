"""Received items become frames in the archive, each with a row in the catalog; what cannot be used is quarantined."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain, NativeGrid
from pipeline.errors import BadInput, NowcastError, OtherQuantity, machine_fault
from pipeline.feed_quantity import keep_one_quantity, overlap
from pipeline.frames.archive import Archive
from pipeline.frames.checks import frame_fault
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import ECHO, Frame, drizzle_floor, make_frame
from pipeline.source_settings import PolarSource
from pipeline.sources import RainField, Source, VolumeRef, open_source
from pipeline.sources.gridded import GriddedFiles
from pipeline.storage import Store

log = logging.getLogger(__name__)

# radar.md: up to a minute off the axis a frame is taken as it is
AXIS_TOLERANCE = timedelta(seconds=60)
# clocks of radars and computers differ by this much at most; anything later is from a wrong clock
FUTURE_TOLERANCE = timedelta(minutes=2)

Progress = Callable[[int, int], None]


@dataclass
class IngestResult:
    """What one ingest did.

    Attributes:
        defects: what is missing of the ``partial`` volumes, which are used.
        quarantined: keys with reasons, also of files that will be tried again.
        left_alone: keys of whole files of another quantity or interval than is taken in, with reasons.
        problems: of the source as a whole.
    """

    framed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    off_axis: int = 0
    partial: int = 0
    defects: list[str] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    left_alone: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def warn(self, problem: str) -> None:
        """Note a problem of the source, which is logged too."""
        log.warning("%s", problem)
        self.problems.append(problem)


class LaterPerhaps(Exception):
    """The item may be usable another time: ``state`` is one of ``catalog.RETRIED``."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state


def ingest(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime,
    end: datetime,
    now: datetime,
    progress: Progress = lambda done, total: None,
    patience_s: float = 600.0,
) -> IngestResult:
    """Take in everything for the slots in [start, end] that is not known yet.

    Safe to run twice, and by several processes at once: a frame is one object, its row is the last thing written.

    Args:
        patience_s: how long to wait for another process that takes in volumes of the domain.

    Raises:
        StoreUnavailable: the source, the archive or the catalog cannot be used.
        SettingsError: the archive was made with other settings, or the cadence does not fit the source.
        AtWork: another process takes in volumes of the domain for longer than ``patience_s``.
    """
    archive = Archive(store, domain)
    archive.source()  # other settings are an error before anything is done
    result = IngestResult()
    _compare_with_catalog(archive, catalog, domain)
    job = Job(domain, store, catalog, archive, times.Clock(now), result, patience_s)
    if isinstance(domain.source, PolarSource):
        from pipeline.ingest_volumes import ingest_volumes

        ingest_volumes(job, start, end, progress)
        return result
    source = open_source(domain)
    listed = source.list(start - AXIS_TOLERANCE, end + AXIS_TOLERANCE, warn=result.warn)
    refs = [
        ref for ref in nameable(job, listed) if start <= times.nearest_slot(ref.nominal_time, domain.cadence) <= end
    ]
    known = known_volumes(catalog, domain, start, end, now)
    fresh = [ref for ref in refs if (ref.key, ref.etag) not in known]
    result.unchanged = len(refs) - len(fresh)
    if fresh and isinstance(source, GriddedFiles):
        keep_one_quantity(source, domain, archive, fresh, store)
    for n, ref in enumerate(fresh):
        with store.scratch() as folder:
            _ingest_one(job, source, folder, ref)
        progress(n + 1, len(fresh))
    return result


def nameable(job: "Job", refs: Iterable[VolumeRef]) -> list[VolumeRef]:
    """Those that the catalog can hold; it is said which it cannot, and why, and no more is done with them."""
    good = []
    for ref in refs:
        reason = tables.misfit(tables.volumes, {"key": ref.key, "etag": ref.etag, "radar": ref.radar})
        if reason:
            log.warning("not taken in: %s", reason)
            job.result.quarantined.append((tables.writable(ref.key), reason))
        else:
            good.append(ref)
    return good


def forget_damaged(archive: Archive, catalog: Catalog, domain: Domain, time: datetime) -> None:
    """Set a damaged frame aside, and have the next ingest read what it was made from again."""
    v, f = tables.volumes.c, tables.frames.c
    with catalog.write(domain.name) as connection:
        lost = [times.seconds(one) for one in archive.set_aside(time)]
        its = sa.and_(f.domain == domain.name, f.valid_time.in_(lost))
        keys = connection.execute(sa.select(f.source_key).where(its)).scalars().all()
        connection.execute(sa.delete(tables.frames).where(its))
        gave_it = sa.or_(v.key.in_(keys), v.slot.in_(lost))
        again = sa.and_(v.domain == domain.name, gave_it, v.state.in_(("framed", "partial")))
        reason = f"its frame {times.iso(time)} was damaged in the archive"
        connection.execute(sa.update(tables.volumes).where(again).values(state="unreadable", reason=reason))


def _compare_with_catalog(archive: Archive, catalog: Catalog, domain: Domain) -> None:
    f = tables.frames.c
    if archive.source() is not None and not catalog.read(sa.select(f.domain).where(f.domain == domain.name).limit(1)):
        log.warning(
            "the archive %s holds frames, the catalog knows none: `nowcast catalog rebuild` finds them", archive.folder
        )


@dataclass(frozen=True)
class Job:
    """What the steps of one ingest share."""

    domain: Domain
    store: Store
    catalog: Catalog
    archive: Archive
    clock: times.Clock
    result: IngestResult
    patience_s: float

    @property
    def now(self) -> datetime:
        """The time that the edge gave; what is later comes from a wrong clock."""
        return self.clock.start


def _ingest_one(job: Job, source: Source, folder: Path, ref: VolumeRef) -> None:
    """Frame one item, or record why not; either way the next one follows."""
    volume = volume_row(job.domain, ref, job.clock.now())
    slot = times.nearest_slot(ref.nominal_time, job.domain.cadence)
    if abs(ref.nominal_time - slot) > AXIS_TOLERANCE:
        job.result.off_axis += 1
        record(job, volume | {"state": "off_axis", "reason": f"{times.iso(ref.nominal_time)} is not on the axis"})
        return
    path: Path | None = None
    try:
        if ref.nominal_time > job.now + FUTURE_TOLERANCE:
            dated = f"dated {times.iso(ref.nominal_time)}, which is after now ({times.iso(job.now)})"
            raise LaterPerhaps("future", f"{ref.key}: {dated}")
        path, volume["sha256"] = _fetch(source, ref, folder)
        _frame(job, ref, volume, slot, _decode(source, ref, path))
    except LaterPerhaps as err:
        log.warning("%s", err)
        job.result.quarantined.append((ref.key, str(err)))
        record(job, volume | {"state": err.state, "reason": str(err)})
    except OtherQuantity as err:
        job.result.left_alone.append((ref.key, str(err)))
        record(job, volume | {"state": "left_alone", "reason": str(err)})
    except BadInput as err:
        quarantine(job, ref, volume, [path] if path else [], str(err))


def _fetch(source: Source, ref: VolumeRef, folder: Path) -> tuple[Path, str]:
    """The file and its checksum."""
    try:
        path = source.fetch(ref, folder)
        return path, _sha256(path)
    except OSError as err:
        raise LaterPerhaps("unreadable", f"{ref.key}: cannot be read: {err.strerror or err}") from err


def _decode(source: Source, ref: VolumeRef, path: Path) -> RainField:
    try:
        return source.decode(path)
    except NowcastError:
        raise
    except Exception as err:
        if fault := machine_fault(err):
            raise LaterPerhaps("unreadable", f"{ref.key}: cannot be read: {fault}") from err
        # a decoder met content that it has no words for; the traceback is for us, the file for the quarantine
        log.exception("decoding %s failed", ref.key)
        raise BadInput(f"{ref.key}: cannot be decoded: {type(err).__name__}: {err}") from err


def _frame(job: Job, ref: VolumeRef, volume: Row, slot: datetime, field: RainField) -> None:
    """Archive the frame of a decoded item, unless a more complete one stands."""
    domain = job.domain
    frame, removed = _checked_frame(ref, field, domain)
    volume = volume | {"measured_until": field.valid_time.timestamp()}
    coverage, offset = float(frame.observed.mean()), (ref.nominal_time - slot).total_seconds()
    if reason := overlap(domain, job.archive.source(), field):
        raise OtherQuantity(f"{ref.key}: {reason}")
    grid = field.grid.coarsened(domain.grid.coarsen) if isinstance(domain.grid, NativeGrid) else field.grid
    made_from = FrameSource(grid, drizzle_floor(field.smallest_rate_mm_h), field.interval_s, field.parameter)
    row = {
        "domain": domain.name,
        "valid_time": times.seconds(slot),
        "source_key": ref.key,
        "arrived_at": ref.arrived_at.timestamp(),
        "offset_s": offset,
        "coverage": coverage,
        "echo": float((frame.state == ECHO).mean()),
        "removed": removed,
        "inputs": "",
        "framed_at": job.clock.now().timestamp(),
    }
    # under the domain's write lock, so that of two files for an instant, taken in at once, one stands with its row
    with job.catalog.write(job.domain.name) as connection:
        if fault := frame_fault(frame, domain, slot, standing_frame(connection, domain, slot - domain.cadence)):
            raise BadInput(f"{ref.key}: {fault}")
        standing = standing_frame(connection, domain, slot)
        other = standing is not None and standing["source_key"] != ref.key
        reason = ""
        if standing is not None and other:
            known = standing["source_key"] or "a file that is not known any more"
            reason = f"{times.iso(slot)} was framed from {known}, coverage {standing['coverage']:.3f}"
        if standing is not None and other and not _is_better(row, standing):
            job.catalog.upsert(connection, tables.volumes, [volume | {"state": "duplicate", "reason": reason}])
            job.result.duplicates += 1
            return
        try:
            digest = job.archive.write(slot, frame, made_from)
        except BadInput as err:
            raise BadInput(f"{ref.key}: {err}") from err
        job.catalog.upsert(connection, tables.volumes, [volume | {"reason": reason}])
        job.catalog.upsert(connection, tables.frames, [row | {"sha256": digest}])
    job.result.framed += 1


def _is_better(row: Row, standing: Row) -> bool:
    """Of two items for an instant the more complete one stands, then the nearer one, then the first."""
    new, old = ((r["coverage"], -abs(r["offset_s"])) for r in (row, standing))
    # a rebuilt catalog does not know what a frame came from: the same file gives it its name back
    return bool(new > old or (new == old and not standing["source_key"]))


def _checked_frame(ref: VolumeRef, field: RainField, domain: Domain) -> tuple[Frame, float]:
    if abs(field.valid_time - ref.nominal_time) > AXIS_TOLERANCE:
        raise BadInput(
            f"{ref.key}: the name says {times.iso(ref.nominal_time)}, the content {times.iso(field.valid_time)}"
        )
    frame, removed = make_frame(field, domain)
    coverage = float(frame.observed.mean())
    if coverage < domain.quality.min_coverage:
        why = "the radar is silent, which is not dry"
        if removed:
            limit = f"{domain.quality.max_rate_mm_h:g} mm/h (quality.max_rate_mm_h)"
            why = f"{removed:.1%} were above {limit}, others not measured"
        raise BadInput(
            f"{ref.key}: only {coverage:.1%} of the cells are observed, expected at least "
            f"{domain.quality.min_coverage:.1%} (quality.min_coverage): {why}"
        )
    return frame, removed


def quarantine(job: Job, ref: VolumeRef, volume: Row, paths: Sequence[Path], reason: str) -> None:
    """Keep the bytes (of the files that can be read) and the reason."""
    log.warning("quarantined: %s", reason)
    kept = []
    for path in paths:
        try:
            checksum = _sha256(path)
        except FileNotFoundError:
            continue  # it has left the source since; the reason is kept all the same
        except OSError as err:  # its bytes must not be lost: the next ingest looks at it again
            later = f"{ref.key}: cannot be kept: {machine_fault(err) or err}; {reason}"
            job.result.quarantined.append((ref.key, later))
            record(job, volume | {"state": "unreadable", "reason": later})
            return
        target = job.store.quarantine(job.domain.name, path.name, checksum)
        with job.store.publish(target) as temporary:
            shutil.copyfile(path, temporary)
        kept.append(job.store.relative(target))
    volume = volume | {"state": "quarantined", "reason": reason}
    job.store.append_journal(
        job.now,
        {"event": "quarantined", "volume": volume, "reason": reason, "kept": " ".join(kept), "domain": job.domain.name},
    )
    job.result.quarantined.append((ref.key, reason))
    record(job, volume)


def volume_row(domain: Domain, ref: VolumeRef, now: datetime) -> Row:
    """Catalog row of a received item, as one that made a frame; what differs is the caller's to set."""
    return {
        "domain": domain.name,
        "key": ref.key,
        "etag": ref.etag,
        "nominal_time": times.seconds(ref.nominal_time),
        "size": ref.size,
        "sha256": "",
        "arrived_at": ref.arrived_at.timestamp(),
        "state": "framed",
        "reason": "",
        "radar": ref.radar,
        "slot": 0,
        "measured_until": 0.0,
        "seen_at": now.timestamp(),
    }


def record(job: Job, volume: Row) -> None:
    """Catalog row of a volume that made no frame by itself."""
    with job.catalog.write(job.domain.name) as connection:
        job.catalog.upsert(connection, tables.volumes, [volume])


def known_volumes(
    catalog: Catalog, domain: Domain, start: datetime, end: datetime, now: datetime
) -> set[tuple[str, str]]:
    """Keys and etags of what needs no second look; a file still dated in the future was reported when first seen."""
    v = tables.volumes.c
    inside = v.nominal_time.between(times.seconds(start - AXIS_TOLERANCE), times.seconds(end + AXIS_TOLERANCE))
    still_future = sa.and_(v.state == "future", v.nominal_time > times.seconds(now + FUTURE_TOLERANCE))
    settled = sa.or_(v.state.not_in(tables.RETRIED), still_future)
    rows = catalog.read(sa.select(v.key, v.etag).where(v.domain == domain.name, inside, settled))
    return {(row["key"], row["etag"]) for row in rows}


def standing_frame(connection: sa.Connection, domain: Domain, slot: datetime) -> Row | None:
    """The catalog row of the frame of an instant; None if there is none."""
    f = tables.frames.c
    query = sa.select(tables.frames).where(f.domain == domain.name, f.valid_time == times.seconds(slot))
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

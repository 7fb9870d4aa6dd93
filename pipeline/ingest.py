"""Received items become frames in the archive, each with a row in the catalog; what cannot be used is quarantined."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.errors import BadInput
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import ECHO, Frame, drizzle_floor, make_frame
from pipeline.settings import Domain, NativeGrid
from pipeline.sources import RainField, Source, VolumeRef, open_source
from pipeline.storage import Store

log = logging.getLogger(__name__)

# radar.md: up to a minute off the axis a frame is taken as it is
AXIS_TOLERANCE = timedelta(seconds=60)
# clocks of radars and computers differ by this much at most; anything later is from a wrong clock
FUTURE_TOLERANCE = timedelta(minutes=2)

Progress = Callable[[int, int], None]


@dataclass
class IngestResult:
    """What one ingest did. ``quarantined`` pairs keys with reasons."""

    framed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    off_axis: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)


def ingest(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime,
    end: datetime,
    now: datetime,
    progress: Progress = lambda done, total: None,
) -> IngestResult:
    """Take in everything with a nominal time in [start, end] that is not known yet.

    Safe to run twice, and by several processes at once: a frame is one object, its row is the last thing written.

    Raises:
        StoreUnavailable: the source, the archive or the catalog cannot be used.
    """
    source = open_source(domain)
    archive = Archive(store, domain)
    result = IngestResult()
    known = {(row["key"], row["etag"]) for row in _known_volumes(catalog, domain, start, end)}
    refs = source.list(start, end)
    fresh = [ref for ref in refs if (ref.key, ref.etag) not in known]
    result.unchanged = len(refs) - len(fresh)
    with store.scratch() as folder:
        for n, ref in enumerate(fresh):
            _ingest_one(domain, store, catalog, source, archive, ref, folder, now, result)
            progress(n + 1, len(fresh))
    return result


def _ingest_one(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    source: Source,
    archive: Archive,
    ref: VolumeRef,
    folder: Path,
    now: datetime,
    result: IngestResult,
) -> None:
    sha256 = ""
    path: Path | None = None
    volume: Row = {
        "domain": domain.name,
        "key": ref.key,
        "etag": ref.etag,
        "nominal_time": times.seconds(ref.nominal_time),
        "size": ref.size,
        "sha256": "",
        "arrived_at": ref.arrived_at.timestamp(),
        "state": "framed",
        "reason": "",
    }
    try:
        slot = times.nearest_slot(ref.nominal_time, domain.cadence)
        if abs(ref.nominal_time - slot) > AXIS_TOLERANCE:
            volume.update(state="off_axis", reason=f"{times.iso(ref.nominal_time)} is not on the axis")
            result.off_axis += 1
            _record(catalog, volume, None)
            return
        if ref.nominal_time > now + FUTURE_TOLERANCE:
            raise BadInput(f"{ref.key}: dated {times.iso(ref.nominal_time)}, which is after now ({times.iso(now)})")
        path = source.fetch(ref, folder)
        sha256 = _sha256(path)
        volume["sha256"] = sha256
        field = source.decode(path)
        frame, removed = _checked_frame(ref, field, domain)
    except (BadInput, OSError) as err:
        reason = str(err) if isinstance(err, BadInput) else f"{ref.key}: cannot be read: {err.strerror or err}"
        _quarantine(store, catalog, domain, ref, volume, path, sha256, reason, now)
        result.quarantined.append((ref.key, reason))
        return
    coverage = float(frame.observed.mean())
    standing = _standing_frame(catalog, domain, slot)
    if standing is not None and standing["source_key"] not in ("", ref.key):
        # a second item for an instant: the more complete one stands, the first at a tie
        better = coverage > standing["coverage"]
        volume.update(
            state="framed" if better else "duplicate",
            reason=f"{times.iso(slot)} was framed from {standing['source_key']}, coverage {standing['coverage']:.3f}",
        )
        if not better:
            result.duplicates += 1
            _record(catalog, volume, None)
            return
    grid = field.grid.coarsened(domain.grid.coarsen) if isinstance(domain.grid, NativeGrid) else field.grid
    digest = archive.write(slot, frame, grid, drizzle_floor(field.smallest_rate_mm_h))
    row = {
        "domain": domain.name,
        "valid_time": times.seconds(slot),
        "sha256": digest,
        "source_key": ref.key,
        "arrived_at": ref.arrived_at.timestamp(),
        "offset_s": (ref.nominal_time - slot).total_seconds(),
        "coverage": coverage,
        "echo": float((frame.state == ECHO).mean()),
        "removed": removed,
    }
    _record(catalog, volume, row)
    result.framed += 1


def _checked_frame(ref: VolumeRef, field: RainField, domain: Domain) -> tuple[Frame, float]:
    if abs(field.valid_time - ref.nominal_time) > AXIS_TOLERANCE:
        raise BadInput(
            f"{ref.key}: the name says {times.iso(ref.nominal_time)}, the content {times.iso(field.valid_time)}"
        )
    frame, removed = make_frame(field, domain)
    coverage = float(frame.observed.mean())
    if coverage < domain.quality.min_coverage:
        raise BadInput(
            f"{ref.key}: only {coverage:.1%} of the cells are observed, expected at least "
            f"{domain.quality.min_coverage:.1%} (quality.min_coverage): the radar is silent, which is not dry"
        )
    return frame, removed


def _quarantine(
    store: Store,
    catalog: Catalog,
    domain: Domain,
    ref: VolumeRef,
    volume: Row,
    path: Path | None,
    sha256: str,
    reason: str,
    now: datetime,
) -> None:
    """Keep the bytes (if they could be read) and the reason."""
    log.warning("quarantined: %s", reason)
    kept = ""
    if path is not None and path.is_file() and sha256:
        target = store.quarantine(domain.name, ref.key, sha256)
        with store.publish(target) as temporary:
            shutil.copyfile(path, temporary)
        kept = store.relative(target)
    volume.update(state="quarantined", reason=reason)
    store.append_journal(
        now, {"event": "quarantined", "volume": volume, "reason": reason, "kept": kept, "domain": domain.name}
    )
    _record(catalog, volume, None)


def _record(catalog: Catalog, volume: Row, frame: Row | None) -> None:
    with catalog.write() as connection:
        catalog.upsert(connection, tables.volumes, [volume])
        if frame is not None:
            catalog.upsert(connection, tables.frames, [frame])


def _known_volumes(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> list[Row]:
    v = tables.volumes.c
    inside = v.nominal_time.between(times.seconds(start), times.seconds(end))
    return catalog.read(sa.select(v.key, v.etag).where(v.domain == domain.name, inside))


def _standing_frame(catalog: Catalog, domain: Domain, slot: datetime) -> Row | None:
    f = tables.frames.c
    rows = catalog.read(sa.select(tables.frames).where(f.domain == domain.name, f.valid_time == times.seconds(slot)))
    return rows[0] if rows else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

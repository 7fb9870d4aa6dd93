"""Compaction of closed days: the single objects of a day's frames become one object, and then go.

A frame that comes late is a single object again and counts; the next compaction merges it. A kill at any moment leaves
every frame readable: the packed object is complete before the first single one goes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.grayscale import Frame
from pipeline.ingest import standing_frame
from pipeline.storage import Store

log = logging.getLogger(__name__)

# a day is closed when it ended so long ago
CLOSED_AFTER = timedelta(days=2)
# one compaction or retention of a domain at a time
LEASE = "housekeeping/{}"


@dataclass
class Compacted:
    """What a compaction did. ``problems`` are days that stay as they are, and why."""

    days: int = 0
    objects_before: int = 0
    objects_after: int = 0
    problems: list[str] = field(default_factory=list)


def compact(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    now: datetime,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Compacted:
    """Compact the closed days of a domain; ingest and forecasts go on meanwhile, and twice does nothing."""
    archive, result = Archive(store, domain), Compacted()
    archive.source()
    with catalog.lease(LEASE.format(domain.name)) as lease:
        if lease is None:
            result.problems.append(f"another process keeps house for {domain.name}")
            return result
        days = [day for day in archive.days() if day + timedelta(days=1) + CLOSED_AFTER <= now]
        for n, day in enumerate(days):
            objects = archive.objects(day)
            singles, packed = len(objects.singles()), int(objects.is_packed())
            if singles + packed > 1:
                if fault := _compact_day(archive, catalog, domain, day):
                    result.problems.append(f"{domain.name} {day:%Y-%m-%d} stays as it is: {fault}")
                    log.warning("%s", result.problems[-1])
                else:
                    result.days += 1
                    result.objects_before += singles + packed
                    result.objects_after += len(objects.singles()) + 1
            progress(domain.name, n + 1, len(days))
    return result


def _compact_day(archive: Archive, catalog: Catalog, domain: Domain, day: datetime) -> str:
    """Why the day cannot be compacted; empty if it was."""
    objects = archive.objects(day)
    recorded = _recorded(catalog, domain, day)
    try:
        before = objects.packed_frames()
    except ValueError as err:
        return f"{err}; `nowcast verify`, or a forecast from it, sets it aside"
    frames = before | objects.single_frames()
    held = {times.seconds(day + slot * domain.cadence) for slot in frames}
    if held - set(recorded):
        return f"{len(held - set(recorded))} of its frames are not in the catalog; `nowcast catalog rebuild`"
    if set(recorded) - held:
        return f"{len(set(recorded) - held)} frames of the catalog are lost; `nowcast catalog rebuild`"
    if fault := _differing(archive.read, recorded):
        return fault
    archive.prepare_packed(day)
    with catalog.write(domain.name):  # frames are written under this lock
        if _recorded(catalog, domain, day) != recorded:
            return "a frame came in at this moment; the next compaction takes it"
        objects.pack(frames)
    if fault := _differing(archive.read_packed, recorded):
        with catalog.write(domain.name):
            objects.pack(before)
        return f"what was written does not read back: {fault}"
    for slot in objects.singles():
        time = day + slot * domain.cadence
        # one at a time, so that a slow store never keeps ingest from writing for long
        with catalog.write(domain.name) as connection:
            standing = standing_frame(connection, domain, time)
            if standing is not None and standing["sha256"] == recorded.get(times.seconds(time)):
                objects.remove_single(slot)
    return ""


def _recorded(catalog: Catalog, domain: Domain, day: datetime) -> dict[int, str]:
    """Instant -> checksum of the day's frames."""
    f = tables.frames.c
    inside = sa.and_(f.valid_time >= times.seconds(day), f.valid_time < times.seconds(day + timedelta(days=1)))
    rows = catalog.read(sa.select(f.valid_time, f.sha256).where(f.domain == domain.name, inside))
    return {row["valid_time"]: row["sha256"] for row in rows}


def _differing(read: Callable[[datetime], Frame | None], recorded: dict[int, str]) -> str:
    """The first frame that does not read as the catalog has it; empty if all do."""
    for seconds, wanted in sorted(recorded.items()):
        time = tables.from_seconds(seconds)
        try:
            frame = read(time)
        except (DamagedFrame, ValueError, OSError, RuntimeError) as err:
            return f"{times.iso(time)} is damaged: {err}"
        found = "no frame" if frame is None else checksum(frame)
        if found != wanted:
            return f"{times.iso(time)} has checksum {found[:12]}, the catalog {wanted[:12]}"
    return ""

"""Polar volumes become frames: decode and grid each (in processes), move it to its instant, combine, archive.

Every volume belongs to one instant of the axis, the first that is not more than a minute before its low sweeps were
measured: a frame shows what was measured before it, never after. A frame is made anew whenever one of its volumes
arrives, so that order of arrival does not matter.
"""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.advection import move_forward
from pipeline.domain import Domain, ProjectedGrid
from pipeline.errors import BadInput, WorkerLost
from pipeline.frames.archive import FrameSource
from pipeline.frames.grayscale import ECHO, drizzle_floor, join_channels, make_frame
from pipeline.grids import Grid, centred_grid
from pipeline.ingest import AXIS_TOLERANCE, FUTURE_TOLERANCE, Job, known_volumes, quarantine, record, volume_row
from pipeline.radar.gridding import GriddedVolume, Level, grid_volume, level_of
from pipeline.radar.mosaic import combine
from pipeline.radar.quality import clean
from pipeline.radar.volume import NO_ECHO_DBZ
from pipeline.source_settings import PolarSource
from pipeline.sources import open_polar_source
from pipeline.sources.contract import RainField, VolumeRef

log = logging.getLogger(__name__)

# a volume whose sweeps are this far from its name has a wrong clock, or a wrong name
CLOCK_TOLERANCE = timedelta(minutes=30)
# from the time in a name to the last sweep
LONGEST_SCAN = timedelta(minutes=10)
# volumes of a radar further apart than this many cadences tell nothing about the motion
MOTION_REACH = 2.5
LEASE_PATIENCE_S = 600.0
# dBZ between which motion is seen
MOTION_RANGE = (0.0, 60.0)


@dataclass(frozen=True)
class Prepared:
    """A volume after decoding, cleaning and gridding; or why there is nothing.

    Attributes:
        field: None if the volume gives nothing; ``reason`` then says why.
        removed: share of the echo that quality control took out.
        state: framed, partial or quarantined; or one of ``catalog.RETRIED``.
    """

    ref: VolumeRef
    state: str
    reason: str = ""
    field: GriddedVolume | None = None
    removed: float = 0.0


def ingest_volumes(job: Job, start: datetime, end: datetime, progress: Callable[[int, int], None]) -> None:
    """Decode what is new for the instants in [start, end], and make every frame that it belongs to.

    Raises:
        WorkerLost: a process that decodes was killed; or another process is at work on the domain for too long.
    """
    # frames of several radars are made from all of them: two ingests at once would each see only a part
    with job.catalog.lease(f"ingest/{job.domain.name}", LEASE_PATIENCE_S) as lease:
        if lease is None:
            raise WorkerLost(f"another process has been ingesting {job.domain.name} for {LEASE_PATIENCE_S:.0f} s")
        _ingest(job, start, end, progress)


def _ingest(job: Job, start: datetime, end: datetime, progress: Callable[[int, int], None]) -> None:
    domain, source = job.domain, job.domain.source
    assert isinstance(source, PolarSource)
    reach = MOTION_REACH * domain.cadence
    listed = open_polar_source(domain).list(start - reach - LONGEST_SCAN, end + AXIS_TOLERANCE)
    first = start - domain.cadence - LONGEST_SCAN  # a volume is named before its low sweeps were measured
    done = known_volumes(job.catalog, domain, first, end, job.now)
    wanted = [ref for ref in listed if ref.nominal_time >= first]
    fresh = [ref for ref in wanted if (ref.key, ref.etag) not in done]
    job.result.unchanged = len(wanted) - len(fresh)
    work = _Work(job, {ref.key: ref for ref in listed}, *_slots(job, listed))
    work.touched |= _without_frame(work, start, end)
    for n, one in enumerate(_prepare_all(job, source, fresh)):
        work.prepared[one.ref.key] = one
        slot = _record_volume(job, one)
        if one.ref.key in work.replaced:  # its frame must be made without the file that it was made from
            work.touched.add(work.replaced.pop(one.ref.key))
        if slot is not None:
            work.slots[one.ref.key] = slot
            work.touched.add(slot)
            work.touched |= _after(work, one.ref)
        progress(n + 1, len(fresh))
        # volumes of later names may still belong to the newest instants
        _make_frames(work, one.ref.nominal_time - LONGEST_SCAN)
        work.forget(one.ref.nominal_time - 2 * (LONGEST_SCAN + reach))
    _make_frames(work, None)


@dataclass
class _Work:
    """What is known while volumes come in.

    Attributes:
        listed: every volume in the folder, by key.
        slots: instant of each volume that gives something.
        replaced: instant of the frame that an earlier file of the same key went into.
        prepared: recent volumes, gridded.
        touched: instants whose frame is to be made.
    """

    job: Job
    listed: dict[str, VolumeRef]
    slots: dict[str, datetime]
    replaced: dict[str, datetime]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    touched: set[datetime] = field(default_factory=set)

    def forget(self, before: datetime) -> None:
        """Drop gridded volumes that no later frame needs."""
        self.prepared = {k: p for k, p in self.prepared.items() if p.ref.nominal_time >= before}

    def gridded(self, key: str) -> GriddedVolume | None:
        """A volume's field; one that an earlier ingest saw is decoded again."""
        if key not in self.listed:
            return None  # the file has left the folder since
        if key not in self.prepared:
            self.prepared[key] = prepare(self.job.domain, self.listed[key], self.job.now)
        return self.prepared[key].field


def _without_frame(work: _Work, start: datetime, end: datetime) -> set[datetime]:
    """Instants whose volumes were recorded by an ingest that was ended before it made the frame."""
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end))
    rows = work.job.catalog.read(sa.select(f.valid_time).where(f.domain == work.job.domain.name, inside))
    framed = {tables.from_seconds(row["valid_time"]) for row in rows}
    return {slot for slot in work.slots.values() if start <= slot <= end} - framed


def _slots(job: Job, listed: list[VolumeRef]) -> tuple[dict[str, datetime], dict[str, datetime]]:
    """Instants of the volumes that gave something before: of the same files, and of files replaced since."""
    v = tables.volumes.c
    etags = {ref.key: ref.etag for ref in listed}
    nominal = [times.seconds(ref.nominal_time) for ref in listed] or [0]
    inside = v.nominal_time.between(min(nominal), max(nominal))
    rows = job.catalog.read(sa.select(v.key, v.etag, v.slot).where(v.domain == job.domain.name, v.slot > 0, inside))
    same = {r["key"]: tables.from_seconds(r["slot"]) for r in rows if etags.get(r["key"]) == r["etag"]}
    other = {r["key"]: tables.from_seconds(r["slot"]) for r in rows if r["key"] in etags and r["key"] not in same}
    return same, other


def slot_of(time: datetime, cadence: timedelta) -> datetime:
    """The instant that a volume belongs to: the first at or after its low sweeps, a minute forgiven."""
    return times.first_slot(time - AXIS_TOLERANCE, cadence)


def _prepare_all(job: Job, source: PolarSource, refs: list[VolumeRef]) -> Iterator[Prepared]:
    """In order; in processes where the source says so, since neither HDF5 nor decoding gains from threads."""
    if source.processes == 1 or len(refs) < 2:
        for ref in refs:
            yield prepare(job.domain, ref, job.now)
        return
    with ProcessPoolExecutor(min(source.processes, len(refs)), get_context("spawn")) as pool:
        try:
            yield from pool.map(_prepare, [(job.domain, ref, job.now) for ref in refs])
        except BrokenProcessPool as err:
            raise WorkerLost(f"a process that decodes volumes of {job.domain.name} was killed") from err


def _prepare(task: tuple[Domain, VolumeRef, datetime]) -> Prepared:
    return prepare(*task)


def prepare(domain: Domain, ref: VolumeRef, now: datetime) -> Prepared:
    """Decode, clean and grid one volume; whatever is wrong with it becomes a state with a reason."""
    source = domain.source
    assert isinstance(source, PolarSource)
    try:
        if ref.nominal_time > now + FUTURE_TOLERANCE:
            dated = f"dated {times.iso(ref.nominal_time)}, which is after now ({times.iso(now)})"
            return Prepared(ref, "future", f"{ref.key}: {dated}")
        with TemporaryDirectory(prefix="volume-") as folder:
            volume = open_polar_source(domain).read(ref, Path(folder))
        volume, removed = clean(volume, domain.quality)
        grid = domain_grid(domain)
        gridded = grid_volume(volume, grid, domain_levels(domain), source.max_range_km * 1e3)
        if gridded is None:
            raise BadInput(f"{ref.key}: the radar at {volume.site} does not reach the grid of {domain.name}")
        if abs(gridded.time - ref.nominal_time) > CLOCK_TOLERANCE or gridded.time > now + FUTURE_TOLERANCE:
            reason = f"{ref.key}: the name says {times.iso(ref.nominal_time)}, the rays {times.iso(gridded.time)}"
            if abs(gridded.time - ref.nominal_time) <= CLOCK_TOLERANCE:
                return Prepared(ref, "future", f"{reason}, which is after now ({times.iso(now)})")
            raise BadInput(reason)
        if np.isnan(gridded.dbz).all():
            raise BadInput(f"{ref.key}: nothing was measured on the grid; the radar is silent, which is not dry")
    except BadInput as err:
        return Prepared(ref, "quarantined", str(err))
    except OSError as err:
        return Prepared(ref, "unreadable", f"{ref.key}: cannot be read: {err.strerror or err}")
    except MemoryError:
        raise
    except Exception as err:
        # a decoder met content that it has no words for; the traceback is for us, the file for the quarantine
        log.exception("decoding %s failed", ref.key)
        return Prepared(ref, "quarantined", f"{ref.key}: cannot be decoded: {type(err).__name__}: {err}")
    defects = "; ".join(gridded.defects)
    return Prepared(ref, "partial" if defects else "framed", defects, gridded, sum(removed.values()))


def domain_grid(domain: Domain) -> Grid:
    """The grid of a domain that has one of its own."""
    assert isinstance(domain.grid, ProjectedGrid)
    return centred_grid(domain.grid.crs, domain.grid.shape, domain.grid.spacing_m, domain.grid.centre)


def domain_levels(domain: Domain) -> tuple[Level, ...]:
    """What the channels of the domain's frames show."""
    return tuple(level_of(product) for product in domain.products)


def _record_volume(job: Job, one: Prepared) -> datetime | None:
    """Catalog row of a volume; the slot that it belongs to, None if it gives nothing."""
    ref = one.ref
    slot = None if one.field is None else slot_of(one.field.time, job.domain.cadence)
    volume = volume_row(job.domain, ref) | {"state": one.state, "reason": one.reason}
    volume["slot"] = 0 if slot is None else times.seconds(slot)
    if one.state in tables.RETRIED:
        log.warning("%s", one.reason)
        job.result.quarantined.append((ref.key, one.reason))
        record(job, volume)
    elif one.state == "quarantined":
        quarantine(job, ref, volume, open_polar_source(job.domain).files(ref), one.reason)
    else:
        job.result.partial += one.state == "partial"
        record(job, volume)
    return slot


def _make_frames(work: _Work, until: datetime | None) -> None:
    for slot in sorted(t for t in work.touched if until is None or t <= until):
        _make_frame(work, slot)
        work.touched.discard(slot)


def _make_frame(work: _Work, slot: datetime) -> None:
    """Combine the newest volume of every radar, each moved forward to the instant, and archive the frame."""
    job, domain, source = work.job, work.job.domain, work.job.domain.source
    assert isinstance(source, PolarSource)
    newest: dict[str, tuple[str, GriddedVolume]] = {}
    for key in sorted(key for key, time in work.slots.items() if time == slot):
        gridded = work.gridded(key)
        if gridded is not None and (gridded.radar not in newest or gridded.time > newest[gridded.radar][1].time):
            newest[gridded.radar] = key, gridded
    moved, inputs = [], []
    for radar, (key, gridded) in sorted(newest.items()):
        offset = (slot - gridded.time).total_seconds()
        at_slot, how = _moved(work, key, gridded, offset)
        moved.append(at_slot)
        removed_here = round(work.prepared[key].removed, 4)
        inputs.append(
            {"radar": radar, "key": key, "offset_s": round(offset, 1), "aligned": how, "removed": removed_here}
        )
    grid = domain_grid(domain)
    mosaic = combine(moved, grid.shape, domain_levels(domain), source.mosaic)
    fields = [RainField(dbz, "reflectivity", grid, slot, 0.0, removed=mosaic.removed) for dbz in mosaic.dbz]
    frames = [make_frame(one, domain) for one in fields]
    made, removed = join_channels([frame for frame, _ in frames]), frames[0][1]
    coverage = float(made.observed.mean())
    if not newest or coverage < domain.quality.min_coverage:
        reason = (
            f"{times.iso(slot)}: only {coverage:.1%} of the cells are observed, expected at least "
            f"{domain.quality.min_coverage:.1%} (quality.min_coverage): no frame is made"
        )
        job.result.quarantined.append((times.iso(slot), reason))
        return
    row = {
        "domain": domain.name,
        "valid_time": times.seconds(slot),
        "source_key": str(inputs[0]["key"]) if len(inputs) == 1 else "",
        "arrived_at": max(work.listed[key].arrived_at.timestamp() for key, _ in newest.values()),
        "offset_s": max(abs((slot - gridded.time).total_seconds()) for _, gridded in newest.values()),
        "coverage": coverage,
        "echo": float((made.state == ECHO).mean()),
        "removed": removed,
        "inputs": json.dumps(inputs),
    }
    with job.catalog.write() as connection:
        digest = job.archive.write(slot, made, FrameSource(grid, drizzle_floor(0.0), 0.0))
        job.catalog.upsert(connection, tables.frames, [row | {"sha256": digest}])
    job.result.framed += 1


def _moved(work: _Work, key: str, gridded: GriddedVolume, offset: float) -> tuple[GriddedVolume, str]:
    """The field at the instant, by the radar's own motion since its volume before; and how that was done."""
    if abs(offset) <= AXIS_TOLERANCE.total_seconds():
        return gridded, "taken as it is"
    before = _volume_before(work, key, gridded)
    if before is None:
        return gridded, "not moved: no volume before it"
    between = (gridded.time - before.time).total_seconds()
    floor, top = MOTION_RANGE
    dbz = move_forward(np.maximum(before.dbz, floor), np.maximum(gridded.dbz, floor), offset / between, floor, top)
    dbz = np.where(dbz <= floor, np.float32(NO_ECHO_DBZ), dbz)
    mean_height = np.nanmean(gridded.height, axis=(1, 2), keepdims=True)
    height = np.where(np.isnan(gridded.height), mean_height, gridded.height)
    removed = gridded.removed & np.isnan(dbz[0])
    return replace(gridded, dbz=dbz, height=height.astype(np.float32), removed=removed), "moved forward"


def _after(work: _Work, ref: VolumeRef) -> set[datetime]:
    """Instants of the radar's later volumes whose motion this one tells: they may have come before it."""
    latest = ref.nominal_time + MOTION_REACH * work.job.domain.cadence
    return {
        slot
        for key, slot in work.slots.items()
        if key in work.listed
        and work.listed[key].radar == ref.radar
        and ref.nominal_time < work.listed[key].nominal_time <= latest
    }


def _volume_before(work: _Work, key: str, gridded: GriddedVolume) -> GriddedVolume | None:
    """The radar's volume before this one, if it is near enough to tell the motion."""
    this = work.listed[key]
    earliest = this.nominal_time - MOTION_REACH * work.job.domain.cadence
    others = [
        ref
        for ref in work.listed.values()
        if ref.radar == this.radar and earliest <= ref.nominal_time < this.nominal_time
    ]
    for ref in sorted(others, key=lambda r: r.nominal_time, reverse=True):
        before = work.gridded(ref.key)
        if before is not None and before.time < gridded.time and before.window == gridded.window:
            return before
    return None

"""Polar volumes come in: which are new, to which instant each belongs, and which frames must be made anew.

Every volume belongs to one instant of the axis, the first that is not more than a minute before its low sweeps were
measured: a frame shows what was measured before it, never after. How a frame is made is in ``pipeline.volume_frames``.
"""

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.errors import AtWork, StoreUnavailable, machine_fault
from pipeline.ingest import AXIS_TOLERANCE, Job, known_volumes, nameable, quarantine, record, volume_row
from pipeline.prepare import Prepared, prepare_all
from pipeline.source_settings import PolarSource
from pipeline.sources import open_polar_source
from pipeline.sources.contract import VolumeRef
from pipeline.volume_frames import MOTION_REACH, NOT_MOVED, Work, changed_by, frame_instant, own_inputs, volumes_before

log = logging.getLogger(__name__)

# from the time in a name to the last sweep
LONGEST_SCAN = timedelta(minutes=10)
# volumes that are taken in under one hold of the lease
PIECE = 96


def ingest_volumes(job: Job, start: datetime, end: datetime, progress: Callable[[int, int], None]) -> None:
    """Decode what is new for the instants in [start, end], and make every frame that it belongs to.

    A long period goes in pieces, each under the lease, so that the live process gets its turn during a backfill.

    Raises:
        AtWork: another process is at work on the domain for too long.
    """
    domain, source = job.domain, job.domain.source
    assert isinstance(source, PolarSource)
    reach = MOTION_REACH * domain.cadence + LONGEST_SCAN
    listed = nameable(job, open_polar_source(domain).list(start - reach, end + AXIS_TOLERANCE, warn=job.result.warn))
    listed = [ref for ref in listed if ref.open_until is None or ref.open_until <= job.now]
    _compare_with_settings(domain, source, {ref.radar for ref in listed})
    first = start - domain.cadence - LONGEST_SCAN  # a volume is named before its low sweeps were measured
    wanted = [ref for ref in listed if ref.nominal_time >= first]
    fresh = _not_known(job, wanted, first, end)
    job.result.unchanged = len(wanted) - len(fresh)
    done = 0
    nominal = sorted(ref.nominal_time for ref in listed)
    for begin, last in _pieces(domain, listed, start, end):
        first_after = bisect_left(nominal, begin - reach)
        if first_after == len(nominal) or nominal[first_after] > last + LONGEST_SCAN:
            continue  # years may lie between two files
        # frames of several radars are made from all of them: two ingests at once would each see only a part
        with job.catalog.lease(f"ingest/{domain.name}", job.patience_s) as lease:
            if lease is None:
                raise AtWork(f"another process has been ingesting {domain.name} for {job.patience_s:.0f} s")
            near = [ref for ref in listed if begin - reach <= ref.nominal_time <= last + LONGEST_SCAN]
            done += _ingest(job, near, begin, last, partial(_show, progress, done, len(fresh)))


def _show(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _pieces(
    domain: Domain, listed: list[VolumeRef], start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """First and last instants of the pieces of a period, of about ``PIECE`` volumes each."""
    if not listed:
        return
    instants = max(6, PIECE // len({ref.radar for ref in listed}))
    begin = times.first_slot(max(start, listed[0].nominal_time - domain.cadence), domain.cadence)
    end = min(end, listed[-1].nominal_time + LONGEST_SCAN + domain.cadence)
    while begin <= end:
        yield begin, min(begin + (instants - 1) * domain.cadence, end)
        begin += instants * domain.cadence


def _not_known(job: Job, refs: list[VolumeRef], first: datetime, end: datetime) -> list[VolumeRef]:
    known = known_volumes(job.catalog, job.domain, first, end, job.now)
    return [ref for ref in refs if (ref.key, ref.etag) not in known]


def _ingest(job: Job, listed: list[VolumeRef], start: datetime, end: datetime, progress: Callable[[int], None]) -> int:
    """One piece. Returns how many volumes were new."""
    domain, source = job.domain, job.domain.source
    assert isinstance(source, PolarSource)
    reach = MOTION_REACH * domain.cadence
    first = start - domain.cadence - LONGEST_SCAN
    fresh = _not_known(job, [ref for ref in listed if ref.nominal_time >= first], first, end + LONGEST_SCAN)
    work = Work(job, source, {ref.key: ref for ref in listed}, *_slots(job, listed))
    work.touched |= _stale(work, start, end)
    maps = job.store.fetch(job.store.clutter(domain.name))
    for n, one in enumerate(prepare_all(domain, fresh, job.now, maps)):
        work.prepared[one.ref.key] = one
        slot = _record_volume(job, one)
        if one.ref.key in work.replaced:  # its frame must be made without the file that it was made from
            work.touched.add(work.replaced.pop(one.ref.key))
        if slot is not None:
            work.place(one.ref.key, slot)
            work.touched |= {slot, *changed_by(work, one.ref, slot)}
        progress(n + 1)
        # volumes of later names may still belong to the newest instants
        _make_frames(work, start, min(end, one.ref.nominal_time - LONGEST_SCAN))
        work.forget(one.ref.nominal_time - 2 * (LONGEST_SCAN + reach))
    _make_frames(work, start, end)
    return len(fresh)


def _compare_with_settings(domain: Domain, source: PolarSource, radars: set[str]) -> None:
    named = {"blocked": set(source.blocked), "sites": set(getattr(source, "sites", {}))}
    for key, names in named.items():
        if radars and names - radars:
            log.warning(
                "domains.%s.source.%s names %s, of which there is no volume; there are %s",
                domain.name, key, ", ".join(sorted(names - radars)), ", ".join(sorted(radars)),
            )  # fmt: skip


def _stale(work: Work, start: datetime, end: datetime) -> set[datetime]:
    """Instants without a frame, or whose frame lacks a volume: an earlier ingest was ended, or had another period."""
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end))
    rows = work.job.catalog.read(sa.select(tables.frames).where(f.domain == work.job.domain.name, inside))
    inputs = {tables.from_seconds(row["valid_time"]): own_inputs(row) for row in rows}
    used = {slot: {(one["key"], one.get("etag")) for one in own} for slot, own in inputs.items()}
    newest: dict[tuple[datetime, str], list[VolumeRef]] = defaultdict(list)
    for key, slot in work.slots.items():
        ref, there = work.listed[key], newest[slot, work.listed[key].radar]
        if there and ref.nominal_time > there[0].nominal_time:
            there.clear()
        if not there or ref.nominal_time == there[0].nominal_time:
            there.append(ref)
    stale = {slot for (slot, _), refs in newest.items() if not {(r.key, r.etag) for r in refs} & used.get(slot, set())}
    for slot, own in inputs.items():
        stuck = [work.listed[i["key"]] for i in own if i["aligned"] == NOT_MOVED and i["key"] in work.listed]
        if any(before.key in work.slots for ref in stuck for before in volumes_before(work, ref)):
            stale.add(slot)
    return {slot for slot in stale if start <= slot <= end}


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


def _record_volume(job: Job, one: Prepared) -> datetime | None:
    """Catalog row of a volume; the slot that it belongs to, None if it gives nothing."""
    ref = one.ref
    slot = None if one.field is None else slot_of(one.field.time, job.domain.cadence)
    volume = volume_row(job.domain, ref, job.clock.now()) | {"state": one.state, "reason": one.reason}
    volume["slot"] = 0 if slot is None else times.seconds(slot)
    volume["measured_until"] = one.measured_until
    if one.state in tables.RETRIED:
        log.warning("%s", one.reason)
        job.result.quarantined.append((ref.key, one.reason))
        record(job, volume)
    elif one.state == "quarantined":
        _keep_bytes(job, ref, volume, one.reason)
    else:
        if one.state == "partial":
            job.result.partial += 1
            job.result.defects.append(f"{ref.key}: {one.reason}")
        record(job, volume)
    return slot


def _keep_bytes(job: Job, ref: VolumeRef, volume: Row, reason: str) -> None:
    """Quarantine a volume with its files; where these cannot be read now, the next ingest looks at it again."""
    with job.store.scratch() as folder:
        try:
            paths = open_polar_source(job.domain).files(ref, folder)
        except (OSError, StoreUnavailable) as err:
            later = f"{ref.key}: cannot be kept: {machine_fault(err) or err}; {reason}"
            job.result.quarantined.append((ref.key, later))
            record(job, volume | {"state": "unreadable", "reason": later})
            return
        quarantine(job, ref, volume, paths, reason)


def _make_frames(work: Work, start: datetime, end: datetime) -> None:
    """Those of the instants in [start, end]; of others not every volume is listed, and a later ingest finds them."""
    for slot in sorted(t for t in work.touched if start <= t <= end):
        frame_instant(work, slot)
        work.touched.discard(slot)

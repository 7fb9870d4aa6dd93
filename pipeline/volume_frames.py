"""A frame from the volumes of several radars: which show the instant, moved to it, combined, archived.

A frame is made anew whenever one of its volumes arrives, so that the order of arrival does not matter; where files have
left the source, or came again as less, the more complete frame stands.
"""

import json
import logging
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.advection import move_forward
from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.frames.checks import frame_fault
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import ADVECTED, ECHO, Frame, drizzle_floor, join_channels, make_frame
from pipeline.ingest import AXIS_TOLERANCE, Job, standing_frame
from pipeline.prepare import Prepared, domain_grid, domain_levels, prepare
from pipeline.radar.gridding import GriddedVolume
from pipeline.radar.mosaic import combine
from pipeline.radar.volume import NO_ECHO_DBZ
from pipeline.source_settings import PolarSource
from pipeline.sources.contract import RainField, VolumeRef

log = logging.getLogger(__name__)

# a frame with less than this share of the coverage of the one that stands does not replace it
LESS_COMPLETE = 0.9
# volumes of a radar further apart than this many cadences tell nothing about the motion
MOTION_REACH = 2.5
# dBZ between which motion is seen
MOTION_RANGE = (0.0, 60.0)
NOT_MOVED = "not moved: no volume before it"


@dataclass
class Work:
    """What is known while volumes come in.

    Attributes:
        source: the domain's.
        listed: every volume in the source, by key.
        slots: instant of each of these that gives something; ``place`` adds one.
        replaced: instant of the frame that an earlier file of the same key went into.
        prepared: recent volumes, gridded.
        touched: instants whose frame is to be made.
    """

    job: Job
    source: PolarSource
    listed: dict[str, VolumeRef]
    slots: dict[str, datetime]
    replaced: dict[str, datetime]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    touched: set[datetime] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._keys: dict[datetime, set[str]] = defaultdict(set)
        for key, slot in self.slots.items():
            self._keys[slot].add(key)
        self._of_radar: dict[str, list[VolumeRef]] = defaultdict(list)
        for ref in sorted(self.listed.values(), key=lambda ref: ref.nominal_time):
            self._of_radar[ref.radar].append(ref)

    def place(self, key: str, slot: datetime) -> None:
        """Note the instant that a volume belongs to."""
        if key in self.slots:
            self._keys[self.slots[key]].discard(key)
        self.slots[key] = slot
        self._keys[slot].add(key)

    def keys(self, slot: datetime) -> list[str]:
        """Of the volumes that belong to an instant, in order."""
        return sorted(self._keys.get(slot, ()))

    def between(self, radar: str, after: datetime, before: datetime) -> list[VolumeRef]:
        """Volumes of a radar with a nominal time in [after, before], in order of time."""
        refs = self._of_radar.get(radar, [])
        first = bisect_left(refs, after, key=lambda ref: ref.nominal_time)
        return refs[first : bisect_right(refs, before, key=lambda ref: ref.nominal_time)]

    def forget(self, before: datetime) -> None:
        """Drop gridded volumes that no later frame needs."""
        self.prepared = {k: p for k, p in self.prepared.items() if p.ref.nominal_time >= before}

    def gridded(self, key: str) -> GriddedVolume | None:
        """A volume's field; one that an earlier ingest saw is decoded again."""
        if key not in self.listed:
            return None  # the file has left the folder since
        if key not in self.prepared:
            domain, maps = self.job.domain, self.job.store.clutter(self.job.domain.name)
            self.prepared[key] = prepare(domain, self.listed[key], self.job.now, maps)
        return self.prepared[key].field


def frame_instant(work: Work, slot: datetime) -> None:
    """Combine the newest volume of every radar, each moved forward to the instant, and archive the frame.

    A radar without a volume for the instant is carried on from the one before; cells that only such radars see count as
    advected, so that nothing is verified against them.
    """
    job, domain = work.job, work.job.domain
    own = _own(work, slot)
    if not own:
        _remove_moved(work, slot)
        return
    carried = {radar: one for radar, one in _newest(work, slot - domain.cadence).items() if radar not in own}
    grid, inputs = domain_grid(domain), []
    mosaics = []
    for group in (own, carried):
        moved = []
        for radar, (key, gridded) in sorted(group.items()):
            offset = (slot - gridded.time).total_seconds()
            at_slot, how = _moved(work, key, gridded, offset)
            if group is carried and how == NOT_MOVED:
                continue  # what cannot be moved would be stale
            moved.append(at_slot)
            inputs.append(
                {
                    "radar": radar,
                    "key": key,
                    "etag": work.listed[key].etag,
                    "offset_s": round(offset, 1),
                    "aligned": how,
                    "removed": round(work.prepared[key].removed, 4),
                    "carried": group is carried,
                }
            )
        mosaics.append(combine(moved, grid.shape, domain_levels(domain), work.source.mosaic))
    measured, before = mosaics
    only_carried = np.isnan(measured.dbz[0]) & ~np.isnan(before.dbz[0])
    dbz = np.where(only_carried, before.dbz, measured.dbz)
    fields = [RainField(one, "reflectivity", grid, slot, 0.0, removed=measured.removed & ~only_carried) for one in dbz]
    frames = [make_frame(one, domain) for one in fields]
    made, removed = join_channels([frame for frame, _ in frames]), frames[0][1]
    made = Frame(made.pixels, np.where(only_carried & made.observed, ADVECTED, made.state).astype(np.uint8))
    coverage = float(made.observed.mean())
    row = {
        "domain": domain.name,
        "valid_time": times.seconds(slot),
        "source_key": str(inputs[0]["key"]) if len(inputs) == 1 else "",
        "arrived_at": max(work.listed[key].arrived_at.timestamp() for key, _ in own.values()),
        "offset_s": max(abs((slot - gridded.time).total_seconds()) for _, gridded in own.values()),
        "coverage": coverage,
        "echo": float((made.state == ECHO).mean()),
        "removed": removed,
        "inputs": json.dumps(inputs),
        "framed_at": job.clock.now().timestamp(),
    }
    with job.catalog.write(job.domain.name) as connection:
        fault = frame_fault(made, domain, slot, standing_frame(connection, domain, slot - domain.cadence))
        if fault:
            job.result.quarantined.append((times.iso(slot), fault))
            log.warning("no frame is made: %s", fault)
            return
        standing = standing_frame(connection, domain, slot)
        reason = _why_it_stands(work, slot, standing, inputs, coverage)
        if reason:
            used = {(one["key"], one.get("etag")) for one in own_inputs(standing)}
            too_late = {key for key, _ in own.values() if (key, work.listed[key].etag) not in used}
            _mark_duplicates(connection, domain, too_late, f"{times.iso(slot)} {reason}")
            job.result.duplicates += 1
            return
        digest = job.archive.write(slot, made, FrameSource(grid, drizzle_floor(0.0), 0.0))
        job.catalog.upsert(connection, tables.frames, [row | {"sha256": digest}])
    job.result.framed += 1


def _own(work: Work, slot: datetime) -> dict[str, tuple[str, GriddedVolume]]:
    """For each radar the volume that shows the instant.

    Where a radar has none, and two for the next instant, the earlier of these: it came a little too late to belong, and
    would be lost.
    """
    own = _newest(work, slot)
    following = slot + work.job.domain.cadence
    for radar, keys in _keys(work, following).items():
        if radar not in own and len(keys) > 1:
            both = [(work.gridded(key), key) for key in keys]
            first = min(((g.time, key, g) for g, key in both if g is not None), key=lambda f: f[:2], default=None)
            newest = _newest(work, following)[radar][0] if first is not None else ""
            if first is not None and first[1] != newest and first[0] - slot <= work.job.domain.cadence / 2:
                own[radar] = first[1], first[2]
    return own


def _keys(work: Work, slot: datetime) -> dict[str, list[str]]:
    """For each radar the keys of the volumes that belong to the instant."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in work.keys(slot):
        found[work.listed[key].radar].append(key)
    return found


def _newest(work: Work, slot: datetime) -> dict[str, tuple[str, GriddedVolume]]:
    """For each radar the key and field of its newest volume that belongs to the instant; of one scan the whole file."""
    found: dict[str, tuple[str, GriddedVolume]] = {}

    def rank(key: str, gridded: GriddedVolume) -> tuple[datetime, bool, datetime]:
        return work.listed[key].nominal_time, not gridded.defects, gridded.time

    for key in work.keys(slot):
        gridded = work.gridded(key)
        if gridded is not None and (gridded.radar not in found or rank(key, gridded) > rank(*found[gridded.radar])):
            found[gridded.radar] = key, gridded
    return found


def own_inputs(row: Row | None) -> list[dict[str, Any]]:
    """The volumes of the instant itself that a frame was made from."""
    inputs = [] if row is None else json.loads(row["inputs"] or "[]")
    return [one for one in inputs if not one.get("carried")]


def _moved_away(work: Work, slot: datetime, one: dict[str, Any]) -> bool:
    """The volume of an input now belongs to another instant: it was a part of itself when the frame was made."""
    came_late = one["offset_s"] < -AXIS_TOLERANCE.total_seconds()  # and showed it nevertheless, see _own
    return not came_late and work.slots.get(one["key"], slot) != slot


def _remove_moved(work: Work, slot: datetime) -> None:
    """Take away a frame all of whose volumes now belong to other instants."""
    job = work.job
    with job.catalog.write(job.domain.name) as connection:
        standing = standing_frame(connection, job.domain, slot)
        inputs = own_inputs(standing)
        if inputs and all(_moved_away(work, slot, one) for one in inputs):
            job.archive.set_aside(slot)
            f = tables.frames.c
            here = sa.and_(f.domain == job.domain.name, f.valid_time == times.seconds(slot))
            connection.execute(sa.delete(tables.frames).where(here))
            log.warning("the frame %s is taken away: its volumes belong to other instants", times.iso(slot))


def _why_it_stands(
    work: Work, slot: datetime, standing: Row | None, inputs: list[dict[str, Any]], coverage: float
) -> str:
    """Of two frames of an instant the more complete one stands: files leave the source, or come again as less."""
    before = {one["radar"]: one for one in own_inputs(standing) if not _moved_away(work, slot, one)}
    now = {one["radar"]: one for one in inputs if not one["carried"]}
    if lost := sorted(set(before) - set(now)):
        return f"was framed with {', '.join(lost)}, of which no volume can be used any more"
    stuck = [r for r, one in now.items() if one["aligned"] == NOT_MOVED and before.get(r, one)["aligned"] != NOT_MOVED]
    if stuck and set(before) == set(now):
        return f"was framed with {', '.join(stuck)} moved forward; the volume before, which told the way, has left"
    if standing is not None and coverage < LESS_COMPLETE * standing["coverage"]:
        return f"was framed with coverage {standing['coverage']:.3f}, now it would be {coverage:.3f}"
    return ""


def _mark_duplicates(connection: sa.Connection, domain: Domain, keys: set[str], reason: str) -> None:
    """Volumes that came too late for the frame that stands; they are not looked at again."""
    v = tables.volumes.c
    late = sa.and_(v.domain == domain.name, v.key.in_(keys))
    connection.execute(sa.update(tables.volumes).where(late).values(state="duplicate", slot=0, reason=reason))


def _moved(work: Work, key: str, gridded: GriddedVolume, offset: float) -> tuple[GriddedVolume, str]:
    """The field at the instant, by the radar's own motion since its volume before; and how that was done."""
    if abs(offset) <= AXIS_TOLERANCE.total_seconds():
        return gridded, "taken as it is"
    before = _volume_before(work, key, gridded)
    if before is None:
        return gridded, NOT_MOVED
    between = (gridded.time - before.time).total_seconds()
    floor, top = MOTION_RANGE
    dbz = move_forward(np.maximum(before.dbz, floor), np.maximum(gridded.dbz, floor), offset / between, floor, top)
    dbz = np.where(dbz <= floor, np.float32(NO_ECHO_DBZ), dbz)
    mean_height = np.nanmean(gridded.height, axis=(1, 2), keepdims=True)
    height = np.where(np.isnan(gridded.height), mean_height, gridded.height)
    removed = gridded.removed & np.isnan(dbz[0])
    return replace(gridded, dbz=dbz, height=height.astype(np.float32), removed=removed), "moved forward"


def changed_by(work: Work, ref: VolumeRef, slot: datetime) -> set[datetime]:
    """Other instants whose frame this volume changes, if what belongs to them came before it.

    The next one, to which it is carried on if the radar has no volume there, and those of the radar's later volumes
    whose motion it tells.
    """
    latest = ref.nominal_time + MOTION_REACH * work.job.domain.cadence
    cadence = work.job.domain.cadence
    there = _keys(work, slot + cadence)
    neighbours = {slot + cadence} if there and ref.radar not in there else set()
    if len(_keys(work, slot)[ref.radar]) > 1:
        neighbours.add(slot - cadence)  # the earlier of the two may show it
    later = (one for one in work.between(ref.radar, ref.nominal_time, latest) if one.nominal_time > ref.nominal_time)
    return neighbours | {work.slots[one.key] for one in later if one.key in work.slots}


def volumes_before(work: Work, this: VolumeRef) -> list[VolumeRef]:
    """The radar's volumes before, the newest first, that are near enough to tell the motion."""
    earliest = this.nominal_time - MOTION_REACH * work.job.domain.cadence
    near = work.between(this.radar, earliest, this.nominal_time)
    return [ref for ref in reversed(near) if ref.nominal_time < this.nominal_time]


def _volume_before(work: Work, key: str, gridded: GriddedVolume) -> GriddedVolume | None:
    """The radar's volume before this one, if it is near enough to tell the motion."""
    for ref in volumes_before(work, work.listed[key]):
        before = work.gridded(ref.key)
        if before is not None and before.time < gridded.time and before.window == gridded.window:
            return before
    return None

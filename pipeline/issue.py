"""Cycles are claimed, forecast together and published one by one; each stands or falls by itself."""

import json
import logging
import time as stopwatch
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import nowcast, publish, times
from pipeline.catalog import Catalog, Lease, Row
from pipeline.domain import Domain
from pipeline.errors import LeaseLost, NotForecast, NowcastError, StoreUnavailable, machine_fault, reason_of
from pipeline.frames.archive import Archive
from pipeline.frames.sequences import InputSequence, read_sequence
from pipeline.ingest import forget_damaged
from pipeline.logs import log_context
from pipeline.publish import Outcome
from pipeline.storage import Store
from pipeline.verification.compared import model_key
from pipeline.verification.quality import known_quality
from pipeline.warnings.places import Place, places_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A cycle to be done.

    Attributes:
        cause: why now; recorded with the cycle.
        revise: a product that stands gets a further revision if its input has changed.
    """

    domain: Domain
    reference_time: datetime
    cause: str = ""
    revise: bool = False


@dataclass(frozen=True)
class _Claimed:
    wanted: Wanted
    lease: Lease
    sequence: InputSequence
    methods: nowcast.Methods
    revision: int
    reading_s: float


def issue(
    store: Store,
    catalog: Catalog,
    load: Callable[[Domain, float], nowcast.Methods],
    wanted: Sequence[Wanted],
    kind: str,
    clock: times.Clock,
) -> Iterator[Outcome]:
    """Forecast and publish; outcomes come as they are known, in no order.

    Cycles of one model and shape go through it together, as many as its device takes at once, and are published before
    the next ones are forecast. What is wrong with one cycle or one domain does not touch the others.

    Args:
        load: gives the methods of a domain for frames of that spacing in metres.
        kind: issued or hindcast; neither overwrites the other.
        clock: the wall clock, from the edge.
    """
    with catalog.leases([_lease_name(one, kind) for one in wanted]) as leases:
        claimed: dict[tuple[object, ...], list[_Claimed]] = defaultdict(list)
        archives: dict[str, Archive] = {}
        for one in wanted:
            with log_context(domain=one.domain.name, reference_time=times.iso(one.reference_time)):
                archive = archives.setdefault(one.domain.name, Archive(store, one.domain, remember=True))
                lease = leases.get(_lease_name(one, kind))
                found = _guarded(_claim, one, lease, archive, store, catalog, load, kind, clock)
            if isinstance(found, Outcome):
                yield found
            else:
                model = found.methods.model
                claimed[id(model), found.sequence.pixels.shape, one.domain.lead_frames].append(found)
        for group in claimed.values():
            model = group[0].methods.model
            size = 1 if model is None else model.samples_at_once
            for first in range(0, len(group), size):
                yield from _forecast_and_publish(group[first : first + size], store, catalog, kind, clock)


def _lease_name(one: Wanted, kind: str) -> str:
    return f"cycle/{one.domain.name}/{kind}/{times.iso(one.reference_time)}"


def _guarded(step: Callable[..., "_Claimed | Outcome"], one: Wanted, *arguments: object) -> "_Claimed | Outcome":
    """A step for one cycle; its failure is that cycle's outcome."""
    try:
        return step(one, *arguments)
    except LeaseLost as err:
        return Outcome(one.reference_time, "held", reason=str(err), domain=one.domain.name)
    except Exception as err:
        # a full disk or a bucket that is gone is no fault of ours, and its words say all
        reason, ours = reason_of(err), not isinstance(err, StoreUnavailable) and not machine_fault(err)
        log.error("the cycle failed: %s", reason, exc_info=err if ours else None)
        if not ours and not isinstance(err, StoreUnavailable):
            err = StoreUnavailable(reason)
        return Outcome(one.reference_time, "failed", reason=reason, domain=one.domain.name, error=err)


def _claim(
    one: Wanted,
    lease: Lease | None,
    archive: Archive,
    store: Store,
    catalog: Catalog,
    load: Callable[[Domain, float], nowcast.Methods],
    kind: str,
    clock: times.Clock,
) -> _Claimed | Outcome:
    """Read the input of a cycle, unless its product stands or nothing can be forecast."""
    domain, time = one.domain, one.reference_time
    started = stopwatch.perf_counter()
    standing = publish.recorded(catalog, domain, kind, time)
    published = standing is not None and standing["state"] == "published" and publish.is_there(store, standing)
    if standing is not None and published and not one.revise:
        return publish.announce(domain, store, standing, "unchanged")
    if lease is None:
        return Outcome(time, "held", reason="another process works on it", domain=domain.name)
    try:
        sequence = read_sequence(archive, domain, time)
    except NotForecast as err:
        if standing is not None and published:
            return publish.announce(domain, store, standing, "unchanged")
        return publish.skip(domain, store, catalog, lease, time, kind, clock.now(), str(err), one.cause)
    for damaged in sequence.damaged_times:
        forget_damaged(archive, catalog, domain, damaged)
    revision = 1
    if standing is not None and published:
        if sequence.digest(domain) == standing["inputs_digest"]:
            return publish.announce(domain, store, standing, "unchanged")
        revision = int(standing["revision"]) + 1
    elif standing is not None:
        revision = int(standing["revision"])
    sequence = with_origin(sequence, catalog, domain)
    if adopted := publish.adopt(domain, store, catalog, lease, time, kind, revision):
        return adopted
    if sequence.is_frozen:
        log.warning("the feed is frozen: the oldest and the newest input frame are the same rain")
    methods = load(domain, sequence.source.grid.spacing_m)
    if methods.is_unreadable and kind == "hindcast":  # it can wait for its model; users of a live cycle cannot
        raise StoreUnavailable(methods.refused)
    return _Claimed(one, lease, sequence, methods, revision, stopwatch.perf_counter() - started)


def _forecast_and_publish(
    batch: Sequence[_Claimed], store: Store, catalog: Catalog, kind: str, clock: times.Clock
) -> Iterator[Outcome]:
    started = stopwatch.perf_counter()
    runs = nowcast.by_model([(one.wanted.domain, one.sequence) for one in batch], [one.methods for one in batch])
    share = (stopwatch.perf_counter() - started) / len(batch)
    for one, run in zip(batch, runs, strict=True):
        wanted = one.wanted
        with log_context(domain=wanted.domain.name, reference_time=times.iso(wanted.reference_time)):
            outcome = _guarded(_publish, wanted, one, run, share, store, catalog, kind, clock)
            assert isinstance(outcome, Outcome)
            log.info("%s by %s", outcome.state, outcome.method)
            yield outcome


def _publish(
    wanted: Wanted,
    one: _Claimed,
    run: nowcast.ModelRun,
    model_s: float,
    store: Store,
    catalog: Catalog,
    kind: str,
    clock: times.Clock,
) -> Outcome:
    domain, started = wanted.domain, stopwatch.perf_counter()
    made = nowcast.with_fallbacks((domain, one.sequence), one.methods, run)
    forecast_s = model_s + stopwatch.perf_counter() - started
    model = model_key(made.frames.method, made.frames.model_checksum)
    quality = known_quality(domain, store, catalog, model, wanted.reference_time)
    places, faults = _places(domain, one.sequence)
    stages = {"read": one.reading_s, "forecast": forecast_s}
    publication = publish.Publication(kind, one.revision, clock, wanted.cause, stages)
    outcome = publish.publish(domain, store, catalog, one.lease, one.sequence, made, publication, places, quality)
    return replace(outcome, faults=(*faults, *outcome.faults))


def _places(domain: Domain, sequence: InputSequence) -> tuple[list[Place], tuple[str, ...]]:
    """Points and areas on the grid of the frames; a fault of the software there costs the forecast nothing."""
    try:
        return places_of(domain, sequence.source.grid), ()
    except NowcastError:
        raise  # the settings name a place that is not on the grid
    except Exception as err:
        log.exception("the places of %s are not on the grid", domain.name)
        return [], (f"no forecast of places of {domain.name}: {reason_of(err)}",)


def record_failure(
    store: Store, catalog: Catalog, domain: Domain, failed: Outcome, kind: str, now: datetime
) -> Outcome:
    """Record a cycle that failed by a fault of the software as skipped, with where that was raised."""
    with catalog.lease(_lease_name(Wanted(domain, failed.reference_time), kind)) as lease:
        if lease is None:
            return replace(failed, state="held", error=None)
        skipped = publish.skip(domain, store, catalog, lease, failed.reference_time, kind, now, failed.reason, "failed")
    # a product that is lost and could not be made again has its row still
    return skipped if skipped.state == "skipped" else replace(failed, state="skipped", error=None)


def with_origin(sequence: InputSequence, catalog: Catalog, domain: Domain) -> InputSequence:
    """The sequence with what the catalog knows of its frames: radars, and offsets from the instants."""
    f = tables.frames.c
    wanted = [times.seconds(time) for time in sequence.input_times]
    rows = catalog.read(
        sa.select(f.valid_time, f.offset_s, f.inputs).where(f.domain == domain.name, f.valid_time.in_(wanted))
    )
    known: dict[int, Row] = {row["valid_time"]: row for row in rows}
    newest = known.get(times.seconds(sequence.reference_time))
    inputs = json.loads(newest["inputs"] or "[]") if newest else []
    offsets = tuple(round(float(known[time]["offset_s"]), 1) for time in wanted if time in known)
    own = tuple(one["radar"] for one in inputs if not one.get("carried"))
    carried = tuple(one["radar"] for one in inputs if one.get("carried"))
    return replace(sequence, radars=own, radars_carried_on=carried, offsets_s=offsets)


def give_up(
    store: Store, catalog: Catalog, domain: Domain, missed: Mapping[datetime, str], now: datetime
) -> dict[datetime, Outcome]:
    """Record that the issued forecasts of cycles were missed, and why; of one that is there after all, nothing.

    Args:
        missed: reference times with reasons; all are recorded in one transaction.

    Returns:
        By reference time: skipped, unchanged or published (it was there), or held (another process works on it).
    """
    names = {time: _lease_name(Wanted(domain, time), "issued") for time in sorted(missed)}
    outcomes: dict[datetime, Outcome] = {}
    recorded = publish.recorded_all(catalog, domain, "issued", missed)
    products = {store.product(domain.name, "issued", time, 1) for time in missed}
    # one question for a day: a slow store is not to be asked for each cycle
    whole = {path for folder in sorted({path.parent for path in products}) for path in store.glob(folder, "*_r1.nc")}
    with catalog.leases(list(names.values())) as leases:
        skipped: dict[datetime, tuple[Lease, str]] = {}
        for time, name in names.items():
            lease, row = leases.get(name), recorded.get(time)
            if row is not None and row["state"] == "published":
                outcomes[time] = publish.outcome(row, "unchanged")
            elif lease is None:
                outcomes[time] = Outcome(time, "held", reason="another process works on it", domain=domain.name)
            elif store.product(domain.name, "issued", time, 1) in whole and (
                adopted := publish.adopt(domain, store, catalog, lease, time, "issued", 1)
            ):
                outcomes[time] = adopted
            else:
                skipped[time] = lease, missed[time]
        return outcomes | publish.skip_all(domain, store, catalog, skipped, "issued", now, "given up")

"""Publication of a forecast: written beside, read back, renamed and recorded under the lease; or why there is none."""

import json
import logging
import time as stopwatch
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import packing, product, times
from pipeline.catalog import Catalog, Lease, Row
from pipeline.domain import Domain
from pipeline.errors import LeaseLost, NowcastError, reason_of
from pipeline.frames.grayscale import Pixels
from pipeline.frames.sequences import InputSequence
from pipeline.storage import Store
from pipeline.warnings import forecasts
from pipeline.warnings.places import Place
from pipeline.warnings.watch import Told, watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one cycle.

    Attributes:
        state: published, unchanged (it stood already), skipped (no forecast, with a reason), held (by another
            process) or failed (it could not be done; worth another try).
        method: what made the product.
        reason: why it was skipped, or why it is not the model's.
        path: of the product, below the root.
        warnings: that were raised or ended, in words.
        faults: what beside the product could not be made, and why.
        error: what made it fail.
    """

    reference_time: datetime
    state: str
    method: str = ""
    reason: str = ""
    path: str = ""
    content_digest: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    domain: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Publication:
    """As what a forecast is published.

    Attributes:
        kind: issued or hindcast.
        revision: 1 is the first, which stands; later ones are reissues.
        cause: why the cycle was started when it was.
        stages: seconds that went before, by stage.
    """

    kind: str
    revision: int
    clock: times.Clock
    cause: str
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Made:
    """Forecasts of one cycle: the one to publish, and the baselines beside it."""

    frames: product.ForecastFrames
    baselines: dict[str, Pixels | None]


def publish(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    lease: Lease,
    sequence: InputSequence,
    made: Made,
    publication: Publication,
    places: Sequence[Place] = (),
    quality: Mapping[str, str] | None = None,
) -> Outcome:
    """Written beside, read back, then renamed and recorded while the lease is ours; ``latest`` and warnings come last.

    The forecasts of ``places`` are files beside the product; ``quality`` is what it says of its verified skill.
    """
    started = stopwatch.perf_counter()
    time, now = sequence.reference_time, publication.clock.now()
    identity = product.Identity(time, publication.kind, publication.revision, now)
    path = store.product(domain.name, identity.kind, time, identity.revision)
    beside = store.baselines(path)
    baselines = product.build_baselines(made.baselines, domain.lead_frames, sequence.pixels.shape[-2:])
    with ExitStack() as held:
        new_product, new_baselines = (held.enter_context(store.new_file(target)) for target in (path, beside))
        packing.write(baselines, new_baselines)
        built = product.build(domain, sequence, made.frames, identity, quality)
        packing.write(built, new_product)
        companions = [(new_baselines, beside)]
        faults: list[str] = []
        for target, text in _place_texts(store.place_forecasts(path), domain, sequence, built, places, now, faults):
            companions.append((held.enter_context(store.new_file(target)), target))
            companions[-1][0].write_text(text, encoding="utf-8")
        row = cycle_row(domain, store.relative(path), new_product, new_baselines)
        stages = {**publication.stages, "write": stopwatch.perf_counter() - started}
        row |= {"issue_time": now.timestamp(), "cause": publication.cause}
        row |= {"stages": json.dumps({k: round(v, 4) for k, v in stages.items()})}
        with catalog.write(domain.name) as connection:
            lease.check(connection)
            for temporary, target in companions:
                store.put(temporary, target)
            store.put(new_product, path)
            catalog.upsert(connection, tables.cycles, [row])
    announced = announce(domain, store, row, "published")
    return replace(announced, faults=(*faults, *announced.faults))


def _place_texts(
    document: Path,
    domain: Domain,
    sequence: InputSequence,
    built: xr.Dataset,
    places: Sequence[Place],
    now: datetime,
    faults: list[str],
) -> list[tuple[Path, str]]:
    """The files of the places and their content; without places none. A fault of theirs costs the forecast nothing."""
    if not places:
        return []
    try:
        described = forecasts.describe(domain, sequence, built, places, now)
        return [
            (document, forecasts.to_json(described)),
            (document.with_suffix(".csv"), forecasts.to_csv(described)),
        ]
    except Exception as err:
        log.exception("the places of %s are not described", document.name)
        faults.append(f"no forecast of places with {document.name}: {reason_of(err)}")
        return []


def announce(domain: Domain, store: Store, row: Row, state: str) -> Outcome:
    """Point to a product that stands and, if it was issued, raise and end warnings; a second time does nothing.

    Webhooks are called by ``pipeline.warnings.watch.deliver``, so that a silent one holds up no forecast.
    """
    point_latest(store, domain, row)
    told, faults = Told(), tuple[str, ...]()
    if row["kind"] == "issued":
        try:
            told = watch(domain, store, store.place_forecasts(store.root / row["path"]), row["revision"])
        except NowcastError:
            raise  # the store; the next look at this cycle does it
        except Exception as err:
            log.exception("no warnings from %s", row["path"])
            faults = (f"no warnings from {row['path']}: {reason_of(err)}",)
    return replace(outcome(row, state), warnings=told.warnings, faults=faults)


def cycle_row(domain: Domain, relative: str, path: Path, baselines: Path) -> Row:
    """The catalog row of a product, from the file and its companion; both are read back whole.

    Raises:
        ValueError, OSError: one of them is not whole.
    """
    data = packing.read_packed(path)
    correlation = str(data.attrs["input_correlation"])
    return {
        "domain": domain.name,
        "reference_time": times.seconds(times.parse_time(data.attrs["reference_time"])),
        "kind": str(data.attrs["kind"]),
        "revision": int(data.attrs["revision"]),
        "state": "published",
        "method": str(data.attrs["method"]),
        "reason": str(data.attrs["fallback_reason"]),
        "path": relative,
        "content_digest": packing.checked_digest(data, path),
        "baselines_digest": packing.checked_digest(packing.read_packed(baselines), baselines),
        "inputs_digest": str(data.attrs["inputs_digest"]),
        "model_checksum": str(data.attrs["model_checksum_sha256"]),
        "correlation": float(correlation) if correlation else None,
        "issue_time": times.parse_time(data.attrs["issue_time"]).timestamp(),
        "stages": "",
        "verified": "",
        "verified_reason": "",
        "observations_digest": "",
        "cause": "",
    }


def adopt(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    lease: Lease,
    time: datetime,
    kind: str,
    revision: int,
) -> Outcome | None:
    """Record a whole product that a killed process left without a row."""
    path = store.product(domain.name, kind, time, revision)
    try:
        row = cycle_row(domain, store.relative(path), store.get(path), store.get(store.baselines(path)))
    except (OSError, ValueError, KeyError):
        return None  # not whole; it is made again
    _commit(catalog, lease, row)
    log.info("adopted %s", path.name)
    return announce(domain, store, row, "published")


def skip(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    lease: Lease,
    time: datetime,
    kind: str,
    now: datetime,
    reason: str,
    cause: str = "",
) -> Outcome:
    """``skip_all`` of one cycle."""
    return skip_all(domain, store, catalog, {time: (lease, reason)}, kind, now, cause)[time]


def skip_all(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    skipped: Mapping[datetime, tuple[Lease, str]],
    kind: str,
    now: datetime,
    cause: str = "",
) -> dict[datetime, Outcome]:
    """A missing forecast is a recorded fact with a reason; a later run may still make it. What is published stays.

    Args:
        skipped: the lease and the reason of each reference time; all are recorded in one transaction.
    """
    outcomes: dict[datetime, Outcome] = {}
    rows, entries = [], []
    with catalog.write(domain.name) as connection:
        recorded_rows: dict[int, list[Row]] = {}
        for row in connection.execute(_of_cycles(domain, kind, skipped)).mappings():
            recorded_rows.setdefault(row["reference_time"], []).append(dict(row))
        for time, (lease, reason) in skipped.items():
            try:
                lease.check(connection)
            except LeaseLost as err:
                outcomes[time] = Outcome(time, "held", reason=str(err), domain=domain.name)
                continue
            known = recorded_rows.get(times.seconds(time), [])
            if published := [row for row in known if row["state"] == "published"]:
                outcomes[time] = outcome(published[-1], "unchanged")  # somebody made it since it was looked for
                continue
            outcomes[time] = Outcome(time, "skipped", reason=reason, domain=domain.name)
            if not known or known[-1]["reason"] != reason:
                rows.append(_skipped_row(domain, kind, time, now, reason, cause))
                entries.append({"event": "skipped", "cycle": rows[-1]})
        if rows:
            store.append_journal(now, *entries)
            catalog.upsert(connection, tables.cycles, rows)
    return outcomes


def _skipped_row(domain: Domain, kind: str, time: datetime, now: datetime, reason: str, cause: str) -> Row:
    row: Row = {column.name: "" for column in tables.cycles.columns}
    return row | {
        "domain": domain.name,
        "reference_time": times.seconds(time),
        "kind": kind,
        "revision": 1,
        "state": "skipped",
        "reason": reason,
        "correlation": None,
        "issue_time": now.timestamp(),
        "cause": cause,
    }


def _commit(catalog: Catalog, lease: Lease, row: Row) -> None:
    with catalog.write(row["domain"]) as connection:
        lease.check(connection)
        catalog.upsert(connection, tables.cycles, [row])


def point_latest(store: Store, domain: Domain, row: Row) -> None:
    """Move the hint to an issued product forward, to a later time or a reissue, never backward."""
    if row["kind"] != "issued":
        return
    path = store.latest(domain.name)
    time = tables.from_seconds(row["reference_time"])

    def forward(standing: bytes | None) -> bytes | None:
        try:
            if standing is not None:
                there = json.loads(standing)
                newest = times.parse_time(there["reference_time"]), there.get("revision", 1)
                if newest >= (time, row["revision"]):
                    return None
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged and is written again", path)
        hint = {"reference_time": times.iso(time), "revision": row["revision"]}
        hint |= {"path": row["path"], "content_digest": row["content_digest"]}
        return (json.dumps(hint) + "\n").encode()

    store.update(path, forward)


def is_there(store: Store, row: Row) -> bool:
    """Whether a published product and its companion are still in the store; one that was lost is made again."""
    path = store.root / row["path"]
    missing = [p for p in (path, store.baselines(path)) if not store.size(p)]
    if missing:
        log.warning("%s was published but is lost; it is made again", store.relative(missing[0]))
    return not missing


def recorded(catalog: Catalog, domain: Domain, kind: str, time: datetime) -> Row | None:
    """The newest row of a cycle; None if nothing is recorded of it."""
    return recorded_all(catalog, domain, kind, [time]).get(time)


def recorded_all(
    catalog: Catalog, domain: Domain, kind: str, reference_times: Iterable[datetime]
) -> dict[datetime, Row]:
    """The newest row of each cycle of which something is recorded."""
    rows = catalog.read(_of_cycles(domain, kind, reference_times))
    return {tables.from_seconds(row["reference_time"]): row for row in rows}


def _of_cycles(domain: Domain, kind: str, reference_times: Iterable[datetime]) -> sa.Select[Any]:
    """Rows of cycles, the newest revision last."""
    c = tables.cycles.c
    wanted = c.reference_time.in_([times.seconds(time) for time in reference_times])
    return sa.select(tables.cycles).where(c.domain == domain.name, c.kind == kind, wanted).order_by(c.revision)


def outcome(row: Row, state: str) -> Outcome:
    """What a row says became of its cycle."""
    return Outcome(
        reference_time=tables.from_seconds(row["reference_time"]),
        state=state,
        method=row["method"],
        reason=row["reason"],
        path=row["path"],
        content_digest=row["content_digest"],
        stages=json.loads(row["stages"] or "{}"),
        domain=row["domain"],
    )

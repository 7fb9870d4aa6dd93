"""Score every published forecast whose observations arrived; score again only what new observations touch."""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import packing, product, times
from pipeline.catalog import Catalog, Lease, Row
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, LeaseLost
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE, pixel_of_rate
from pipeline.ingest import forget_damaged
from pipeline.storage import Store
from pipeline.verification import files
from pipeline.verification.sums import PIXEL_SETS, PairSums, pair_sums

log = logging.getLogger(__name__)

# scoring the forecasts of a day takes seconds to minutes
LEASE_PATIENCE_S = 600.0


@dataclass
class VerifyResult:
    """What one verification did."""

    scored: int = 0
    unchanged: int = 0
    waiting: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def verify(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime,
    end: datetime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyResult:
    """Verify the forecasts with a reference time in [start, end].

    A forecast is scored for the leads whose observation is in the archive; when more arrive it is scored again. One
    whose observations never come stays listed as waiting, with the reason. Doing it again changes nothing.
    """
    result = VerifyResult()
    archive = Archive(store, domain)
    checksums = _frame_checksums(catalog, domain, start, end)
    due: dict[Path, list[tuple[Row, str]]] = defaultdict(list)
    for row in _published(catalog, domain, start, end):
        digest = _observations_digest(domain, row, checksums)
        if digest is None:
            result.waiting += 1
            if not row["verified_reason"]:
                _mark(catalog, [row | {"verified_reason": "no observation of its lead times has arrived"}])
            continue
        day = times.day_of(tables.from_seconds(row["reference_time"]))
        path = store.scores(domain.name, row["kind"], model_key(row), day)
        if digest == row["observations_digest"] and path.is_file() and path.stat().st_size:
            result.unchanged += 1
        else:
            due[path].append((row, digest))
    total = sum(map(len, due.values()))
    reset: list[datetime] = []
    for path, rows in due.items():
        with catalog.lease(f"scores/{store.relative(path)}", LEASE_PATIENCE_S) as lease:
            if lease is None:
                result.failed.append((store.relative(path), "another process works on these scores"))
                continue
            before = result.scored + len(result.failed)

            def show(n: int, before: int = before) -> None:
                progress(before + n, total)

            try:
                if _verify_file(domain, store, catalog, archive, lease, path, rows, result, show):
                    reset.append(times.day_of(tables.from_seconds(rows[0][0]["reference_time"])))
            except LeaseLost as err:
                result.failed.append((store.relative(path), str(err)))
    if reset:  # a file of other thresholds or leads, or a damaged one, was replaced: its other forecasts are due again
        first, last = min(start, min(reset)), max(end, max(reset) + timedelta(days=1))
        again = verify(domain, store, catalog, first, last, progress)
        result.scored, result.unchanged = result.scored + again.scored, again.unchanged - result.scored
        result.failed += again.failed
    return result


def model_key(row: Row) -> str:
    """Name under which forecasts are scored together: the method, with the checksum of its weights."""
    checksum = row["model_checksum"][:8]
    return f"{row['method']}-{checksum}" if checksum else str(row["method"])


def _verify_file(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    archive: Archive,
    lease: Lease,
    path: Path,
    rows: list[tuple[Row, str]],
    result: VerifyResult,
    progress: Callable[[int], None],
) -> int:
    """Score the forecasts of one file; returns how many others of it must be scored again."""
    made, marked = [], []
    methods: list[str] = []
    for n, (row, digest) in enumerate(rows):
        progress(n)
        try:
            sums, methods = _score(domain, store, catalog, archive, row)
        except (OSError, ValueError, KeyError) as err:
            log.warning("cannot verify %s: %s", row["path"], err)
            result.failed.append((row["path"], str(err)))
            continue
        missing = [
            times.iso(valid) for valid, came in zip(_valid_times(domain, row), sums.observed, strict=True) if not came
        ]
        made.append(sums)
        marked.append(
            row
            | {
                "verified": "partly" if missing else "fully",
                "verified_reason": f"no observation at {', '.join(missing)}" if missing else "",
                "observations_digest": digest,
            }
        )
    if not made:
        return 0
    leads = [(n + 1) * domain.cadence_minutes for n in range(domain.lead_frames)]
    new = files.to_dataset(made, methods, leads, list(domain.thresholds_mm_h))
    old = _standing_scores(path)
    merged = files.merge(old, new)
    replaced = path.is_file() and (old is None or not files.same_layout(old, new))
    with store.new_file(path) as temporary:
        file_row = {
            "path": store.relative(path),
            "domain": domain.name,
            "kind": rows[0][0]["kind"],
            "model": model_key(rows[0][0]),
            "day": times.seconds(times.day_of(tables.from_seconds(rows[0][0]["reference_time"]))),
            "content_digest": packing.write(merged, temporary),
        }
        with catalog.write() as connection:
            lease.check(connection)
            store.put(temporary, path)
            catalog.upsert(connection, tables.scores, [file_row])
            others = _forget_scores(connection, rows[0][0]) if replaced else 0
            catalog.upsert(connection, tables.cycles, marked)
    progress(len(rows))
    result.scored += len(made)
    result.files.append(store.relative(path))
    return others - len(made) if replaced else 0


def _standing_scores(path: Path) -> xr.Dataset | None:
    try:
        return files.read(path) if path.is_file() else None
    except (OSError, ValueError, KeyError) as err:
        log.warning("the scores %s are damaged and are made again: %s", path, err)
        return None


def _forget_scores(connection: sa.Connection, row: Row) -> int:
    """Mark every forecast of the row's kind, method and day as not verified; returns how many were."""
    c = tables.cycles.c
    day = times.day_of(tables.from_seconds(row["reference_time"]))
    same = sa.and_(
        c.domain == row["domain"],
        c.kind == row["kind"],
        c.method == row["method"],
        c.model_checksum == row["model_checksum"],
        c.reference_time.between(times.seconds(day), times.seconds(day) + 86399),
        c.observations_digest != "",
    )
    done = connection.execute(sa.update(tables.cycles).where(same).values(verified="", observations_digest=""))
    return int(done.rowcount)


def _score(
    domain: Domain, store: Store, catalog: Catalog, archive: Archive, row: Row
) -> tuple[files.ForecastSums, list[str]]:
    path = store.root / row["path"]
    pixels, state, attrs = product.read_forecast(path, domain)
    if attrs["content_digest"] != row["content_digest"]:
        raise ValueError(f"{path} is not the product that the catalog recorded ({row['content_digest'][:12]})")
    if len(pixels) != domain.lead_frames or int(attrs["cadence_minutes"]) != domain.cadence_minutes:
        raise ValueError(
            f"{path} has {len(pixels)} leads every {attrs['cadence_minutes']} minutes, the settings now give "
            f"{domain.lead_frames} every {domain.cadence_minutes}: verify it with the settings it was made with"
        )
    baselines = product.read_baselines(store.baselines(path))
    # a method that issued the product itself is not compared with itself
    compared = {str(attrs["method"]): pixels, **{k: v for k, v in baselines.items() if k != attrs["method"]}}
    thresholds = [pixel_of_rate(t, domain.zr, domain.scale) for t in domain.thresholds_mm_h]
    covered = state != NO_COVERAGE
    complete = all(values is not None for values in compared.values())
    observed: list[bool] = []
    sums: list[list[list[PairSums]]] = [[] for _ in compared]
    for lead, valid_time in enumerate(_valid_times(domain, row)):
        try:
            truth = archive.read(valid_time)
        except DamagedFrame as err:
            log.warning("%s", err)
            forget_damaged(archive, catalog, domain, valid_time)
            truth = None
        observed.append(truth is not None)
        for n, values in enumerate(compared.values()):
            dry = np.zeros(pixels.shape[-2:], np.uint8)
            forecast = dry if values is None else np.where(covered[lead], values[lead], dry)
            seen = np.zeros(dry.shape, bool) if truth is None else truth.observed
            actual = dry if truth is None else truth.rain
            common = seen & covered[lead] & complete
            everything = pair_sums(forecast, actual, seen, thresholds)
            same = bool((common == seen).all())
            by_set = {
                "common": everything if same else pair_sums(forecast, actual, common, thresholds),
                "all_observed": everything,
            }
            sums[n].append([by_set[name] for name in PIXEL_SETS])
    return files.ForecastSums(row["reference_time"], observed, sums), list(compared)


def _published(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> list[Row]:
    c = tables.cycles.c
    inside = c.reference_time.between(times.seconds(start), times.seconds(end))
    query = sa.select(tables.cycles).where(c.domain == domain.name, c.state == "published", inside)
    return catalog.read(query.order_by(c.reference_time, c.kind, c.revision))


def _frame_checksums(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> dict[int, str]:
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end + domain.horizon))
    rows = catalog.read(sa.select(f.valid_time, f.sha256).where(f.domain == domain.name, inside))
    return {row["valid_time"]: row["sha256"] for row in rows}


def _valid_times(domain: Domain, row: Row) -> list[datetime]:
    reference = tables.from_seconds(row["reference_time"])
    return [reference + (n + 1) * domain.cadence for n in range(domain.lead_frames)]


def _observations_digest(domain: Domain, row: Row, checksums: dict[int, str]) -> str | None:
    """What the scores of this forecast depend on; None if no observation has arrived."""
    found = [checksums.get(times.seconds(valid), "") for valid in _valid_times(domain, row)]
    if not any(found):
        return None
    content = [row["content_digest"], row["baselines_digest"], list(domain.thresholds_mm_h), found]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _mark(catalog: Catalog, rows: list[Row]) -> None:
    with catalog.write() as connection:
        catalog.upsert(connection, tables.cycles, rows)

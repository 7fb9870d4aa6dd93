"""Make the catalog again from the stores and the journal, as after its loss."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import packing, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.grayscale import ECHO
from pipeline.publish import cycle_row
from pipeline.storage import Store

log = logging.getLogger(__name__)


# columns that entries of older versions do not have
_BEFORE_NOW = {"radar": "", "slot": 0, "measured_until": 0.0, "seen_at": 0.0}


@dataclass
class Rebuilt:
    """What was found again. ``damaged`` pairs paths with what is wrong with them.

    ``unknown`` are domains of the root that the settings do not name and the catalog has no row of.
    """

    frames: int = 0
    forecasts: int = 0
    scores: int = 0
    skipped: int = 0
    quarantined: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def rebuild(
    domains: list[Domain],
    store: Store,
    catalog: Catalog,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Rebuilt:
    """Replace the rows of ``domains``: frames and products with checksums, reasons from the journal.

    Arrival times and latencies are lost. Which forecasts were verified is found again by the next verification, which
    compares what the sums were made from and makes none anew.
    """
    result = Rebuilt()
    journal = list(store.read_journal())
    for domain in domains:
        rows: dict[sa.Table, list[Row]] = {
            tables.frames: _frames(domain, store, result, progress),
            tables.cycles: _cycles(domain, store, result),
            tables.scores: _scores(domain, store, result),
            tables.volumes: [],
        }
        known = {(row["reference_time"], row["kind"]) for row in rows[tables.cycles]}
        result.frames += len(rows[tables.frames])
        result.forecasts += len(rows[tables.cycles])
        result.scores += len(rows[tables.scores])
        skipped = {
            (e["cycle"]["reference_time"], e["cycle"]["kind"]): e["cycle"]
            for e in journal
            if e.get("event") == "skipped" and e["cycle"]["domain"] == domain.name
        }
        quarantined = {
            (e["volume"]["key"], e["volume"]["etag"]): e["volume"]
            for e in journal
            if e.get("event") == "quarantined" and e["domain"] == domain.name
        }
        again = [{"cause": "", **row} for key, row in skipped.items() if key not in known]
        rows[tables.cycles] += again
        rows[tables.volumes] += [{**_BEFORE_NOW, **row} for row in quarantined.values()]
        result.skipped += len(again)
        result.quarantined += len(quarantined)
        with catalog.write(domain.name) as connection:
            for table, found in rows.items():
                connection.execute(sa.delete(table).where(table.c.domain == domain.name))
                catalog.upsert(connection, table, found)
    result.unknown = _unknown_domains(domains, store, catalog)
    return result


def _unknown_domains(domains: list[Domain], store: Store, catalog: Catalog) -> list[str]:
    folders = {name for part in ("archive", "products") for name in store.folders(store.root / part)}
    named = {domain.name for domain in domains}
    for table in (tables.frames, tables.cycles):
        named |= {row["domain"] for row in catalog.read(sa.select(table.c.domain).distinct())}
    return sorted(folders - named)


def _frames(domain: Domain, store: Store, result: Rebuilt, progress: Callable[[str, int, int], None]) -> list[Row]:
    archive = Archive(store, domain)
    held = archive.times()
    rows = []
    for n, time in enumerate(held):
        try:
            frame = archive.read(time)
        except DamagedFrame as err:
            result.damaged.append((times.iso(time), str(err)))
            continue
        progress(domain.name, n + 1, len(held))
        if frame is None:
            continue
        rows.append(
            {
                "domain": domain.name,
                "valid_time": times.seconds(time),
                "sha256": checksum(frame),
                "source_key": "",
                "arrived_at": 0.0,
                "offset_s": 0.0,
                "coverage": float(frame.observed.mean()),
                "echo": float((frame.state == ECHO).mean()),
                "removed": 0.0,
                "inputs": "",
                "framed_at": 0.0,
            }
        )
    return rows


def _cycles(domain: Domain, store: Store, result: Rebuilt) -> list[Row]:
    rows = []
    for path in store.glob(store.root / "products" / domain.name, "**/*.nc"):
        if "." in path.stem:  # what lies beside a product: baselines, references
            continue
        try:
            rows.append(cycle_row(domain, store.relative(path), store.get(path), store.get(store.baselines(path))))
        except (OSError, ValueError, KeyError) as err:
            result.damaged.append((store.relative(path), str(err)))
    return rows


def _scores(domain: Domain, store: Store, result: Rebuilt) -> list[Row]:
    rows = []
    for path in store.glob(store.root / "verification" / domain.name, "**/*.nc"):
        kind, model = path.parts[-3], path.parts[-2]
        try:
            digest = packing.read_digest(store.get(path))
        except (OSError, ValueError) as err:
            result.damaged.append((store.relative(path), str(err)))
            continue
        day = times.parse_time(path.stem)
        rows.append(
            {
                "path": store.relative(path),
                "domain": domain.name,
                "kind": kind,
                "model": model,
                "day": times.seconds(day),
                "content_digest": digest,
            }
        )
    return rows

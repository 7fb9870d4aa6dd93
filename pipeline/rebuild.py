"""Make the catalog again from the stores and the journal, as after its loss."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import packing, promotion, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, StoreUnavailable
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.grayscale import ECHO
from pipeline.publish import cycle_row
from pipeline.quarantine import IN_QUARANTINE, STATES
from pipeline.storage import Store

log = logging.getLogger(__name__)


# columns that entries of older versions do not have
_BEFORE_NOW = {"radar": "", "slot": 0, "measured_until": 0.0, "seen_at": 0.0}
# what made a frame; without it such a volume must be looked at again
_MADE = ("framed", "partial", "duplicate")


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
    """Make the rows of ``domains`` what stores and journal hold; a row whose object is as it says stays as it is.

    Of what has no row, arrival times and latencies are lost; so are all alerts that the catalog has lost. Which
    forecasts were verified is found again by the next verification, which compares what the sums were made from and
    makes none anew.

    Raises:
        StoreUnavailable: somebody is at work on the catalog; what is written meanwhile would be lost.
    """
    result = Rebuilt()
    if held := catalog.held_leases():
        who = ", ".join(f"{one['name']} ({one['host']}, process {one['process']})" for one in held[:5])
        raise StoreUnavailable(f"the catalog cannot be rebuilt while somebody works on it, stop that first: {who}")
    journal = list(store.read_journal())
    for domain in domains:
        standing = {
            table: catalog.read(sa.select(table).where(table.c.domain == domain.name))
            for table in (tables.frames, tables.cycles, tables.volumes)
        }
        mine = [e for e in journal if _domain_of(e) == domain.name]
        frames = _frames(domain, store, standing[tables.frames], result, progress)
        published = _cycles(domain, store, standing[tables.cycles], result)
        skipped = _skipped(mine, standing[tables.cycles], published)
        volumes = _volumes(domain, mine, standing[tables.volumes], frames)
        rows: dict[sa.Table, list[Row]] = {
            tables.frames: frames,
            tables.cycles: published + skipped,
            tables.scores: _scores(domain, store, result),
            tables.volumes: volumes,
            tables.promotions: promotion.rows_of_journal(mine),
        }
        result.frames += len(frames)
        result.forecasts += len(published)
        result.scores += len(rows[tables.scores])
        result.skipped += len(skipped)
        result.quarantined += sum(row["state"] in IN_QUARANTINE for row in volumes)
        with catalog.write(domain.name) as connection:
            for table, found in rows.items():
                connection.execute(sa.delete(table).where(table.c.domain == domain.name))
                catalog.upsert(connection, table, found)
    result.unknown = _unknown_domains(domains, store, catalog)
    return result


def _domain_of(entry: dict[str, Any]) -> Any:
    return entry.get("domain", (entry.get("cycle") or entry.get("promotion") or {}).get("domain"))


def _skipped(journal: list[dict[str, Any]], standing: list[Row], published: list[Row]) -> list[Row]:
    """Cycles without a forecast, and why; those that were forecast later are not among them."""
    found = {(row["reference_time"], row["kind"]): row for row in standing if row["state"] == "skipped"}
    for entry in journal:
        if entry.get("event") == "skipped":
            row = {"cause": "", **entry["cycle"]}
            found[row["reference_time"], row["kind"]] = row
    made = {(row["reference_time"], row["kind"]) for row in published}
    return [row for key, row in found.items() if key not in made]


def _volumes(domain: Domain, journal: list[dict[str, Any]], standing: list[Row], frames: list[Row]) -> list[Row]:
    """What the catalog still knows of volumes, and of the quarantine what the journal says: reasons and reviews."""
    framed = {row["valid_time"] for row in frames}

    def instant(row: Row) -> int:
        return row["slot"] or times.seconds(
            times.nearest_slot(tables.from_seconds(row["nominal_time"]), domain.cadence)
        )

    found = {(r["key"], r["etag"]): r for r in standing if r["state"] not in _MADE or instant(r) in framed}
    last: dict[tuple[str, str], Row] = {}
    for entry in journal:
        if entry.get("event") == "quarantined":
            row = {**_BEFORE_NOW, **entry["volume"]}
            last[row["key"], row["etag"]] = row
        elif entry.get("event") == "reviewed" and (entry["key"], entry["etag"]) in last:
            last[entry["key"], entry["etag"]] |= {"state": STATES[entry["action"]]}
    for key, row in last.items():
        if key not in found or found[key]["state"] in (*IN_QUARANTINE, *tables.RETRIED):
            found[key] = row
    return list(found.values())


def _unknown_domains(domains: list[Domain], store: Store, catalog: Catalog) -> list[str]:
    folders = {name for part in ("archive", "products") for name in store.folders(store.root / part)}
    named = {domain.name for domain in domains}
    for table in (tables.frames, tables.cycles):
        named |= {row["domain"] for row in catalog.read(sa.select(table.c.domain).distinct())}
    return sorted(folders - named)


def _frames(
    domain: Domain, store: Store, standing: list[Row], result: Rebuilt, progress: Callable[[str, int, int], None]
) -> list[Row]:
    archive = Archive(store, domain)
    held = archive.times()
    known = {row["valid_time"]: row for row in standing}
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
        row = {
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
            "framed_at": archive.written_at(time),
        }
        old = known.get(times.seconds(time))
        rows.append(old if old is not None and old["sha256"] == row["sha256"] else row)
    return rows


def _cycles(domain: Domain, store: Store, standing: list[Row], result: Rebuilt) -> list[Row]:
    known = {row["path"]: row for row in standing if row["state"] == "published"}
    rows = []
    for path in store.glob(store.root / "products" / domain.name, "**/*.nc"):
        if "." in path.stem:  # what lies beside a product: baselines, references
            continue
        try:
            row = cycle_row(domain, store.relative(path), store.get(path), store.get(store.baselines(path)))
        except (OSError, ValueError, KeyError) as err:
            result.damaged.append((store.relative(path), str(err)))
            continue
        old = known.get(row["path"])
        digests = ("content_digest", "baselines_digest")
        rows.append(old if old is not None and all(old[name] == row[name] for name in digests) else row)
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

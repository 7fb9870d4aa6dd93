"""What the catalog holds of each domain, counted."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog


@dataclass(frozen=True)
class Holdings:
    """Counts and newest times of one domain.

    ``unusable`` files are those that gave no frame (quarantined, unreadable, dated in the future) and were not
    replaced by a good file of the same name.
    """

    domain: str
    frames: int
    newest_frame: str
    forecasts: dict[str, int]
    newest_forecast: str
    skipped: int
    verified: dict[str, int]
    unusable: int
    newest_problem: str


def holdings(catalog: Catalog, domains: list[str]) -> list[Holdings]:
    """What each domain has, in the order given."""
    return [_holdings(catalog, domain) for domain in domains]


def _holdings(catalog: Catalog, domain: str) -> Holdings:
    f, c, v = tables.frames.c, tables.cycles.c, tables.volumes.c
    frames = catalog.read(
        sa.select(sa.func.count().label("n"), sa.func.max(f.valid_time).label("newest")).where(f.domain == domain)
    )[0]
    cycles = catalog.read(
        sa.select(
            c.state,
            c.kind,
            c.method,
            c.verified,
            sa.func.count().label("n"),
            sa.func.max(c.reference_time).label("newest"),
        )
        .where(c.domain == domain)
        .group_by(c.state, c.kind, c.method, c.verified)
    )
    good = tables.volumes.alias().c
    replaced = sa.exists().where(
        good.domain == domain,
        good.key == v.key,
        good.state.in_(("framed", "duplicate")),
        good.arrived_at > v.arrived_at,
    )
    bad = catalog.read(
        sa.select(v.reason)
        .where(v.domain == domain, v.state.in_(("quarantined", *tables.RETRIED)), ~replaced)
        .order_by(v.nominal_time.desc(), v.key.desc())
    )
    published = [row for row in cycles if row["state"] == "published"]
    forecasts: dict[str, int] = {}
    verified: dict[str, int] = {}
    for row in published:
        name = f"{row['method']} ({row['kind']})"
        forecasts[name] = forecasts.get(name, 0) + row["n"]
        state = row["verified"] or "not yet"
        verified[state] = verified.get(state, 0) + row["n"]
    return Holdings(
        domain=domain,
        frames=frames["n"],
        newest_frame=_iso(frames["newest"]),
        forecasts=forecasts,
        newest_forecast=_iso(max((row["newest"] for row in published), default=None)),
        skipped=sum(row["n"] for row in cycles if row["state"] == "skipped"),
        verified=verified,
        unusable=len(bad),
        newest_problem=bad[0]["reason"] if bad else "",
    )


def _iso(seconds: Any) -> str:
    return "" if seconds is None else times.iso(tables.from_seconds(seconds))

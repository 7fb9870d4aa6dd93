"""Signs of life of the live process, as the catalog has them: for probes, and for `nowcast up`."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.errors import NotAlive

# a poll that has begun before the first forecast of a cold machine may take a while
SILENT_AFTER = timedelta(minutes=5)


def check_alive(catalog: Catalog, now: datetime) -> datetime:
    """When a live process last looked at a feed; a feed that fails was looked at too.

    Raises:
        NotAlive: not within five minutes, or never.
    """
    f = tables.feeds.c
    row = catalog.read(sa.select(sa.func.max(f.polled_at).label("polled"), sa.func.max(f.fault_at).label("fault")))[0]
    newest = max(row["polled"] or 0.0, row["fault"] or 0.0)
    if not newest:
        raise NotAlive("no live process has looked at a feed yet; `nowcast live` or `nowcast up` starts one")
    last = tables.from_seconds(newest)
    if now - last > SILENT_AFTER:
        raise NotAlive(
            f"no live process has looked at a feed since {times.iso(last)}, {(now - last).total_seconds() / 60:.0f} "
            f"minutes ago; expected within {SILENT_AFTER.total_seconds() / 60:.0f}"
        )
    return last


def first_issued(catalog: Catalog, since: datetime) -> str | None:
    """Path below the root of the first product issued since then; None if there is none."""
    c = tables.cycles.c
    query = sa.select(c.path).where(c.kind == "issued", c.state == "published", c.issue_time >= since.timestamp())
    rows = catalog.read(query.order_by(c.issue_time).limit(1))
    return rows[0]["path"] if rows else None

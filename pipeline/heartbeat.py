"""Signs of life of the live process, as the catalog has them: for probes, and for `nowcast up`."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.errors import NotAlive

# a poll that has begun before the first forecast of a cold machine may take a while
SILENT_AFTER = timedelta(minutes=5)
# the lease of the process that forecasts
LIVE = "live"


def check_alive(catalog: Catalog, now: datetime) -> datetime:
    """When the live process last looked at a feed; a feed that fails was looked at too.

    Raises:
        NotAlive: no process holds the lease of the live one, or no feed was looked at within five minutes.
    """
    if not any(lease["name"] == LIVE for lease in catalog.held_leases()):
        raise NotAlive("no live process is at work; `nowcast live` or `nowcast up` starts one")
    f = tables.feeds.c
    row = catalog.read(sa.select(sa.func.max(f.polled_at).label("polled"), sa.func.max(f.fault_at).label("fault")))[0]
    newest = max(row["polled"] or 0.0, row["fault"] or 0.0)
    if not newest:
        raise NotAlive("the live process has not looked at a feed yet")
    last = tables.from_seconds(newest)
    if now - last > SILENT_AFTER:
        ago, limit = ((span.total_seconds() / 60) for span in (now - last, SILENT_AFTER))
        raise NotAlive(
            f"the live process has not looked at a feed since {times.iso(last)}, {ago:.0f} minutes ago; expected "
            f"within {limit:.0f}"
        )
    return last


def first_issued(catalog: Catalog, domains: Iterable[str], since: datetime) -> str | None:
    """Path below the root of the first product issued since then; None if there is none."""
    c = tables.cycles.c
    # the times of a day before are in reach of the keys, however old the catalog
    recent = c.domain.in_(list(domains)), c.reference_time >= times.seconds(since - timedelta(days=1))
    query = sa.select(c.path).where(
        *recent, c.kind == "issued", c.state == "published", c.issue_time >= since.timestamp()
    )
    rows = catalog.read(query.order_by(c.issue_time).limit(1))
    return rows[0]["path"] if rows else None

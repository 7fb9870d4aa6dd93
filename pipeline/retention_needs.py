"""What still needs old frames and products: forecasts that are not verified, and models in use."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.nowcast import UNTRAINED
from pipeline.promotion import candidates
from pipeline.settings import Settings
from pipeline.storage import Store

# so long after its end a forecast of which some observations are missing is no longer waited for
SETTLED_AFTER = timedelta(days=7)
ALWAYS = (times.EPOCH, times.EPOCH.replace(year=times.YEARS.stop - 1))


def settled(row: Row, domain: Domain, now: datetime) -> bool:
    """Whether nothing more is to come of a forecast.

    All of it is verified; or what is missing has a recorded reason, and its last lead time and its making lie a week
    back. What was never verified is never settled.
    """
    if row["verified"] == "fully":
        return True
    end = max(tables.from_seconds(row["reference_time"]) + domain.horizon, tables.from_seconds(row["issue_time"]))
    return bool(row["verified_reason"]) and now - end > SETTLED_AFTER


def needing(
    connection: sa.Connection, domain: Domain, day: datetime, now: datetime, going: set[tuple[str, int]]
) -> str:
    """Why the frames of a day must stay: a forecast that is not settled has inputs or observations in it.

    Args:
        going: kind and reference time of the forecasts that go themselves.
    """
    c = tables.cycles.c
    first = times.seconds(day - domain.horizon)
    last = times.seconds(day + timedelta(days=1) + (domain.input_frames - 1) * domain.cadence) - 1
    # reissues are not verified, and go with the first
    inside = (c.domain == domain.name, c.state == "published", c.revision == 1, c.reference_time.between(first, last))
    query = sa.select(c.kind, c.reference_time, c.verified, c.verified_reason, c.issue_time).where(*inside)
    for row in connection.execute(query).mappings():
        if (row["kind"], row["reference_time"]) not in going and not settled(dict(row), domain, now):
            return "inputs or observations of forecasts that are not verified"
    return ""


def training_periods(
    settings: Settings, store: Store, catalog: Catalog
) -> dict[str, list[tuple[datetime, datetime, str]]]:
    """Domain -> start, end and model of the frames that models in use were trained on.

    A model that cannot be read may have been trained on anything: all frames of the domains then stay.
    """
    from models import checkpoint

    found: dict[str, list[tuple[datetime, datetime, str]]] = {name: [] for name in settings.domains}
    serving = {one.name for domain in settings.domains.values() for one in candidates(catalog, domain)}
    for model in sorted(serving - UNTRAINED):
        try:
            card = checkpoint.read_card(checkpoint.find(model, (store.models(model),)))
            periods = card.training.get("periods", {})
            spans = {name: [times.parse_time(text) for text in span.split("/")] for name, span in periods.items()}
        except (checkpoint.CheckpointError, ValueError, AttributeError) as err:
            for name in found:
                found[name].append((*ALWAYS, f"perhaps {model}, which cannot be read ({err})"))
            continue
        for name, (start, end) in spans.items():
            if name in found:
                found[name].append((start, end, card.name))
    return found

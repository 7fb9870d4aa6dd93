"""Flow: write the verification page of a domain."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import flow

from flows.artifacts import publish_page
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import PageWritten
from pipeline.settings import load


@flow(name="report")
def report(
    domain: str,
    start: datetime | None = None,
    end: datetime | None = None,
    period: Literal["day", "week", "month"] | None = None,
    pair: tuple[str, str] | None = None,
    out: str | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> PageWritten:
    """Write the verification page of a domain; returns where it lies."""
    settings = load(Path(config) if config else None, changes)
    folder = Path(out) if out else None
    written: PageWritten = as_task(operations.report)(
        settings, domain, start, end, folder, datetime.now(UTC), period, pair
    )
    tables = "\n\n".join(f"{key}\n{text}" for key, text in written.headlines.items())
    publish_page(domain, written.page, written.summary, tables)
    return written

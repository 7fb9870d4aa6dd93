"""Flow: write the verification page of a domain."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows.artifacts import publish_page
from flows.domains import for_domains
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import PageWritten
from pipeline.settings import load


@flow(name="report")
def report(
    domain: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    period: Literal["day", "week", "month"] | None = None,
    pair: tuple[str, str] | None = None,
    out: str | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Write the verification page of a domain, or of every domain; returns where they lie."""
    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)
    folder = Path(out) if out else None

    def one(name: str) -> PageWritten:
        written: PageWritten = as_task(operations.report)(settings, name, start, end, folder, now, period, pair)
        tables = "\n\n".join(f"{key}\n{text}" for key, text in written.headlines.items())
        publish_page(name, written.page, written.summary, tables)
        return written

    return for_domains(settings, domain, one)

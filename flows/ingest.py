"""Flow: turn what a domain's source received into frames."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_report
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="ingest")
def ingest(
    domain: str,
    start: datetime | None = None,
    end: datetime | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Report:
    """Turn what a domain's source received into frames."""
    settings = load(Path(config) if config else None, changes)
    report = operations.ingest(settings, domain, start, end, datetime.now(UTC), as_task)
    publish_report("ingest", report)
    return report

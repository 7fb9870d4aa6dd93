"""Flow: turn what the sources received into frames."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_report
from flows.domains import for_domains
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="ingest")
def ingest(
    domain: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    last_hours: float | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Turn what the source of a domain, or of every domain, received into frames.

    Args:
        last_hours: instead of ``start``, for schedules.
    """
    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)
    if last_hours is not None:
        start = now - timedelta(hours=last_hours)

    def one(name: str) -> Report:
        report = operations.ingest(settings, name, start, end, now, as_task)
        publish_report("ingest", report)
        return report

    return for_domains(settings, domain, one)

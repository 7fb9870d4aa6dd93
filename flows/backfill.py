"""Flow: hindcasts for a period, with what they need and their scores."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_report
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="backfill")
def backfill(
    domain: str,
    start: datetime,
    end: datetime,
    workers: int = 1,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Report:
    """Hindcasts for a period, with what they need and their scores."""
    settings = load(Path(config) if config else None, changes)
    report = operations.backfill(settings, domain, start, end, datetime.now(UTC), workers, as_task)
    publish_report("backfill", report)
    return report

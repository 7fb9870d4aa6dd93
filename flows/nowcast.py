"""Flow: one forecast, of the given reference time or of the newest frame."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_report
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="nowcast")
def nowcast(
    domain: str,
    reference_time: datetime | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Report:
    """One forecast, of the given reference time or of the newest frame."""
    settings = load(Path(config) if config else None, changes)
    report = operations.run(settings, domain, reference_time, datetime.now(UTC), as_task)
    publish_report("nowcast", report)
    return report

"""Flow: score the forecasts of a period against what has arrived."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_report
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="verify")
def verify(
    domain: str,
    start: datetime | None = None,
    end: datetime | None = None,
    external: str | None = None,
    name: str = "external",
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Report:
    """Score the forecasts of a period against what has arrived."""
    settings = load(Path(config) if config else None, changes)
    report = operations.verify(settings, domain, start, end, datetime.now(UTC), as_task, external=external, name=name)
    publish_report("verify", report)
    return report

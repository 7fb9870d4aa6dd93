"""Flow: score the forecasts of a period against what has arrived."""

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


@flow(name="verify")
def verify(
    domain: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    last_hours: float | None = None,
    external: str | None = None,
    name: str = "external",
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Score the forecasts of a domain, or of every domain, against what has arrived.

    Args:
        last_hours: instead of ``start``, for schedules.
    """
    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)
    if last_hours is not None:
        start = now - timedelta(hours=last_hours)

    def one(domain_name: str) -> Report:
        report = operations.verify(settings, domain_name, start, end, now, as_task, external=external, name=name)
        publish_report("verify", report)
        return report

    return for_domains(settings, domain, one)

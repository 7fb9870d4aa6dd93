"""Flow: one forecast of a domain; without a domain the watchdog of the live process."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_report, publish_watch
from flows.domains import end, for_domains
from flows.prefect_link import as_task
from pipeline import operations, resident
from pipeline.operations import Report
from pipeline.settings import load


@flow(name="nowcast")
def nowcast(
    domain: str | None = None,
    reference_time: datetime | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """One forecast, of the given reference time or of the newest frame.

    Without a domain: all that is due, if no live process is at work; else nothing.
    """
    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)
    if domain is None:
        outcomes = resident.tick_once(settings, now, as_task)
        return end(outcomes or [], publish_watch(outcomes))

    def one(name: str) -> Report:
        report = operations.run(settings, name, reference_time, now, as_task)
        publish_report("nowcast", report)
        return report

    return for_domains(settings, domain, one)

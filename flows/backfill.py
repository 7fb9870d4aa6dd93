"""Flow: hindcasts for a period, with what they need and their scores."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow

from flows.artifacts import artifact_key, publish_report
from flows.domains import for_domains
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import Report
from pipeline.settings import load

# between two updates of the progress artifact; each is a call to the server
PROGRESS_EVERY_S = 1.0


@flow(name="backfill")
def backfill(
    domain: str,
    start: datetime,
    end: datetime,
    workers: int = 1,
    dask: str | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Hindcasts for a period, with what they need and their scores; a killed run is done again and goes on.

    Args:
        workers: processes that forecast.
        dask: they are those of the Dask scheduler at this address, or of a cluster on this machine (``local``).
    """
    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)

    def one(name: str) -> Report:
        progress = progress_artifact(artifact_key("backfill-progress", name), name)
        report = operations.backfill(settings, name, start, end, now, workers, as_task, progress, dask)
        publish_report("backfill", report)
        return report

    return for_domains(settings, domain, one)


def progress_artifact(key: str, name: str) -> Callable[[str, int, int], None]:
    """Something to report (stage, done, total) to, which shows it in Prefect as a bar."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    made = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=f"{name}: begun"))
    last = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        if done < total and time.monotonic() - last < PROGRESS_EVERY_S:
            return
        last = time.monotonic()
        share = 100.0 * done / total if total else 100.0
        update_progress_artifact(made, progress=share, description=f"{name}: {stage} {done} of {total}")

    return show

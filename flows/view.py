"""Flow: write the page that shows a forecast of a domain on a map."""

from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_view
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.settings import load


@flow(name="view")
def view(
    domain: str,
    reference_time: datetime | None = None,
    out: str | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Write the forecast page of a domain; returns where it lies and what it shows."""
    settings = load(Path(config) if config else None, changes)
    written = as_task(operations.view)(settings, domain, reference_time, Path(out) if out else None)
    publish_view(domain, written)
    return written

"""Flow: write the page that shows a forecast of a domain on a map."""

from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_view
from flows.domains import for_domains
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.settings import load


@flow(name="view")
def view(
    domain: str | None = None,
    reference_time: datetime | None = None,
    out: str | None = None,
    only_if_new: bool = False,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Write the forecast page of a domain, or of every domain; returns where they lie and what they show.

    Args:
        only_if_new: a page that shows the newest forecast stays as it is.
    """
    settings = load(Path(config) if config else None, changes)
    folder = Path(out) if out else None

    def one(name: str) -> Any:
        written = as_task(operations.view)(settings, name, reference_time, folder, only_if_new)
        publish_view(name, written)
        return written

    return for_domains(settings, domain, one)

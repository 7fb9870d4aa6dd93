"""Flow: train a network on the archive of one or several domains."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import TrainingRequest
from pipeline.settings import load


@flow(name="train")
def train(
    domains: list[str],
    request: TrainingRequest,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Train and write a checkpoint; returns where it lies and how it was made."""
    settings = load(Path(config) if config else None, changes)
    return as_task(operations.train)(settings, domains, request, datetime.now(UTC))

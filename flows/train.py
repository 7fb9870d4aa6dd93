"""Flow: train a network on the archive of one or several domains."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_training
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.operations import TrainingRequest
from pipeline.settings import load


@flow(name="train")
def train(
    domains: list[str] | None = None,
    request: TrainingRequest | None = None,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Train on the archives of the domains (default: of all) and write a checkpoint; returns where it lies."""
    settings = load(Path(config) if config else None, changes)
    request = request or TrainingRequest()
    names = sorted(settings.domains) if domains is None else domains
    result = as_task(operations.train)(settings, names, request, datetime.now(UTC))
    publish_training(request.name, names, result)
    return result

"""Flow: retrain one domain, or all of them in turn; the better model serves."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_retraining
from flows.domains import for_domains
from flows.prefect_link import as_task
from pipeline import operations
from pipeline.settings import load


@flow(name="retrain")
def retrain(
    domain: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    challenger: str = "",
    anew: bool = False,
    online: bool = False,
    config: str | None = None,
    changes: dict[str, str] | None = None,
) -> Any:
    """Train a challenger on the newest archive, compare, and promote it if it is better (default: every domain)."""
    settings = load(Path(config) if config else None, changes)

    def work(name: str) -> Any:
        now = datetime.now(UTC)
        done = operations.retrain(settings, name, now, start, end, challenger, anew, as_task, online=online)
        if done.state != "off":
            publish_retraining(done)
        return done

    return for_domains(settings, domain, work)

"""Flow: pack the archive of closed days, and remove what is older than the settings keep."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_housekeeping
from flows.domains import end
from flows.prefect_link import as_task
from pipeline.operations import open_root
from pipeline.settings import load


@flow(name="housekeeping")
def housekeeping(dry_run: bool = False, config: str | None = None, changes: dict[str, str] | None = None) -> Any:
    """Pack the archive of closed days and remove what is older than the settings keep.

    Args:
        dry_run: only say what would go.
    """
    from pipeline.compaction import compact
    from pipeline.errors import NowcastError
    from pipeline.retention import housekeep

    settings, now = load(Path(config) if config else None, changes), datetime.now(UTC)
    store, catalog = open_root(settings)
    problems, days = [], 0
    with closing(catalog):
        for domain in settings.domains.values() if not dry_run else []:
            try:
                compacted = as_task(compact)(domain, store, catalog, now)
            except NowcastError as error:
                problems.append(f"{domain.name}: {error}")
                continue
            days += compacted.days
            problems += compacted.problems
        done = as_task(housekeep)(settings, store, catalog, now, dry_run)
    problems += done.problems
    publish_housekeeping(done, days, problems)
    return end([done], problems)

"""How a command meets Prefect: through a running server if one answers, bare otherwise."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEALTH_TIMEOUT_S = 0.3
# whose log lines belong to a run
ROOMS = ("pipeline", "models", "flows")


def server_answers(api_url: str) -> bool:
    """Whether a Prefect server at ``api_url`` says that it is healthy, within 0.3 s."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S) as answer:
            return bool(answer.read(16).strip() == b"true")
    except (urllib.error.URLError, OSError, ValueError):
        return False


def prefect_environment(root: Path) -> dict[str, str]:
    """Environment of a process of Prefect whose state lies inside the root; what is set already wins."""
    home = root / "prefect"
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(ROOMS),
        "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
        # a line of ours outside a run is no mistake
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    return ours | {name: os.environ[name] for name in ours if name in os.environ}


@contextmanager
def prefect_settings(root: Path, api_url: str | None) -> Iterator[None]:
    """Prefect with its state inside the root, for the block; call before anything imports Prefect.

    Args:
        api_url: of a running server; None starts Prefect's embedded one for the block.
    """
    environment = prefect_environment(root)
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(environment)
    if api_url is None:
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every call to the server says nothing
    for logger in own_loggers():  # the run's log has every step; stderr what it had before
        for handler in logger.handlers:
            handler.setLevel(max(handler.level, logger.level))
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # the heartbeat thread is joined for a second at the end of every flow
    changes: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_API_URL: api_url}
    with temporary_settings(changes):
        yield


def own_loggers() -> list[logging.Logger]:
    """The loggers of our rooms."""
    return [logging.getLogger(room) for room in ROOMS]


def as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """A step of ``pipeline.operations`` as a Prefect task, tried again only where the world can fail."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    wrapped: Callable[..., Any] = task(
        name=function.__name__.strip("_"),
        retries=2,
        retry_delay_seconds=[5, 20],
        retry_jitter_factor=0.5,
        retry_condition_fn=_world_failed,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(function)
    return wrapped


def _world_failed(task: Any, run: Any, state: Any) -> bool:
    from pipeline.errors import StoreUnavailable

    return isinstance(state.result(raise_on_failure=False), StoreUnavailable | OSError)

"""`nowcast up`: Prefect's server and worker, the deployments and the live process of one machine, under one roof.

The live process starts at once: forecasts do not wait for Prefect.
"""

import fcntl
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.children import MARK, Child, end_marked, fork_guard
from flows.prefect_link import prefect_environment, server_answers
from pipeline.catalog import Catalog
from pipeline.errors import RootInUse, SettingsError, StoreUnavailable
from pipeline.heartbeat import first_issued
from pipeline.processes import process_lives
from pipeline.settings import Settings
from pipeline.storage import open_store

DEPLOYMENTS = Path(__file__).parents[1] / "infra" / "prefect.yaml"
POOL = "nowcast"
# flow runs at a time: a training or a backfill must not keep the watchdog waiting
WORKER_LIMIT = 4
# together less than 20 s; a batch that is not done in time is done by the next start
LIVE_STOP_S, WORKER_STOP_S, RUNS_STOP_S, SERVER_STOP_S = 11.0, 4.0, 1.0, 3.0
GUARD_PATIENCE_S = 15.0
LOOK_S = 0.5
# Prefect keeps every flow run for ever unless told otherwise
KEEP_RUNS_DAYS, KEEP_EVENTS_DAYS = 7, 2

Say = Callable[[str], None]

log = logging.getLogger(__name__)


def up(settings: Settings, say: Say) -> None:
    """Run everything until SIGTERM or Ctrl-C; a second one ends it at once.

    Raises:
        SettingsError: no domains, or ``prefect_api_url`` is not of this machine.
        StoreUnavailable: the root or the catalog cannot be used, or the port is taken.
        RootInUse: another `nowcast up` runs on this root.
    """
    host, port = _address(settings)
    if not settings.domains:
        raise SettingsError("no domain is configured; give a settings file with --config or NOWCAST_CONFIG")
    open_store(settings)  # it can be written
    with _only_one(settings.root, say), closing(Catalog(settings.catalog)) as catalog:
        _check_port(host, port)
        (settings.root / "logs").mkdir(exist_ok=True)
        mark = f"{settings.root}:{os.getpid()}"
        guard, held_open = fork_guard(mark, GUARD_PATIENCE_S)
        try:
            _run(settings, catalog, _environment(settings, mark), (host, port), say)
        finally:
            end_marked(mark, RUNS_STOP_S)
            os.close(held_open)
            os.waitpid(guard, 0)


def _run(settings: Settings, catalog: Catalog, environment: dict[str, str], address: tuple[str, int], say: Say) -> None:
    logs, python = settings.root / "logs", sys.executable
    prefect = [python, "-m", "prefect", "--no-prompt"]
    host, port = address

    def child(name: str, command: list[str], once: bool = False) -> Child:
        return Child(name, command, environment, logs / f"{name}.log", say, once)

    live = child("live", [python, "-m", "flows.cli", "live"])
    server = child("server", [*prefect, "server", "start", "--host", host, "--port", str(port)])
    pool = child("pool", [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"], once=True)
    deploy = child("deploy", [*prefect, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)], once=True)
    worker_command = [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--limit", str(WORKER_LIMIT)]
    worker = child("worker", [*worker_command, "--name", socket.gethostname()])

    stop = _stop_at_signals()
    started, began = time.monotonic(), datetime.now(UTC)
    say(f"{', '.join(sorted(settings.domains))} in {settings.root}; Ctrl-C stops")
    say(f"logs {logs}/*.log, status page {settings.root / 'status' / 'index.html'}")
    to_tend = [live, server]
    waiting = [pool, deploy, worker]
    answered = published = False
    ended = True  # the worker, and its runs were told from those at work
    try:
        while not stop.is_set():
            for one in to_tend:
                one.tend()
            if worker in to_tend and worker.pid is None and not ended:
                _crash_lost_runs(settings.prefect_api_url)
            ended = worker.pid is None
            if not answered and server_answers(settings.prefect_api_url):
                answered = True
                _crash_lost_runs(settings.prefect_api_url)
                say(f"Prefect shows flows at http://{_address_text(host, port)} (after {_since(started)})")
            if answered and waiting and (not to_tend[-1].once or to_tend[-1].done):
                to_tend.append(waiting.pop(0))
                if to_tend[-1] is worker:
                    say(f"schedules are set, a worker runs them (after {_since(started)})")
            if not published and (first := _first_product(catalog, settings, began)):
                published = True
                say(f"first forecast published after {_since(started)}: {first}")
            stop.wait(LOOK_S)
    finally:
        say("stopping; the live process finishes what it has begun")
        live.stop(LIVE_STOP_S)
        worker.stop(WORKER_STOP_S)
        server.stop(SERVER_STOP_S)
        say("stopped")


def _crash_lost_runs(api_url: str) -> None:
    """End in Prefect what a killed worker had begun; such runs keep their deployment's only slot for ever."""
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    crashed = {"state": {"type": "CRASHED", "message": "its worker was killed"}}
    try:
        for run in _post(f"{api_url}/flow_runs/filter", {"flow_runs": states}):
            if run["deployment_id"] is not None:
                _post(f"{api_url}/flow_runs/{run['id']}/set_state", crashed)
    except (OSError, ValueError) as err:  # schedules start all the same
        log.warning("runs of before could not be ended in Prefect: %s", err)


def _post(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5.0) as answer:
        return json.loads(answer.read(10_000_000))


def _since(started: float) -> str:
    """Seconds since a monotonic instant, in words."""
    return f"{time.monotonic() - started:.0f} s"


def _first_product(catalog: Catalog, settings: Settings, began: datetime) -> str | None:
    try:
        return first_issued(catalog, settings.domains, began)
    except StoreUnavailable:  # the live process meets the same and says so
        return None


def _stop_at_signals() -> threading.Event:
    stop = threading.Event()

    def asked(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, asked)
    return stop


def _environment(settings: Settings, mark: str) -> dict[str, str]:
    """What every child gets: our settings file, Prefect's state inside the root, and the mark."""
    defaults = {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(KEEP_RUNS_DAYS * 86400),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{KEEP_EVENTS_DAYS}D",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PYTHONUNBUFFERED": "1",
    }
    # of server and worker themselves; the deployments say INFO for their runs
    quiet = prefect_environment(settings.root) | {"PREFECT_LOGGING_ROOT_LEVEL": "WARNING"}
    forced = {"PREFECT_API_URL": settings.prefect_api_url, MARK: mark}
    if settings.config_path is not None:
        forced["NOWCAST_CONFIG"] = str(settings.config_path)
    return {**defaults, **os.environ, **quiet, **forced}


def _address(settings: Settings) -> tuple[str, int]:
    """Host and port of the server to start."""
    url = settings.prefect_api_url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as err:
        raise SettingsError(f"prefect_api_url = {url!r}: {err}") from err
    if parts.scheme != "http" or parts.path.rstrip("/") != "/api":
        raise SettingsError(f"prefect_api_url = {url!r}: expected http://HOST:PORT/api")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        raise SettingsError(
            f"prefect_api_url = {url!r}: `nowcast up` starts a server for this machine only, as "
            "http://127.0.0.1:4200/api; with a server elsewhere run `nowcast live` and a worker (docs/operation.md)"
        )
    return host, port


def _address_text(host: str, port: int) -> str:
    """HOST:PORT as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_port(host: str, port: int) -> None:
    """The port is free.

    Raises:
        StoreUnavailable: something listens there; if it is a Prefect server, with its version.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except OSError as err:
            problem = err.strerror or str(err)
    version = _version_of(f"http://{_address_text(host, port)}/api/admin/version")
    who = f"a Prefect server {version} runs there" if version else problem
    raise StoreUnavailable(
        f"port {port} of {host} cannot be used: {who}; `nowcast up` starts its own server: stop the other one, or set "
        "prefect_api_url (NOWCAST_PREFECT_API_URL) to another port"
    )


def _version_of(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:
            return str(json.loads(answer.read(100)))[:20]
    except (urllib.error.URLError, OSError, ValueError):
        return ""


@contextmanager
def _only_one(root: Path, say: Say) -> Iterator[None]:
    """Hold ``up.lock`` of the root. The guard keeps it too, so a killed `up` is over when its children are."""
    path = root / "up.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as err:
        raise StoreUnavailable(f"cannot write {path}: {err.strerror or err}") from err
    try:
        latest = time.monotonic() + GUARD_PATIENCE_S + 5.0
        told = False
        while not _locked(descriptor):
            first = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            if not first.isdigit() or process_lives(int(first)) or time.monotonic() > latest:
                raise RootInUse(
                    f"`nowcast up` runs on {root} already, as process {first or 'unknown'}; stop that one first"
                )
            if not told:
                say(f"waiting for what process {first}, which was killed, has left to end")
                told = True
            time.sleep(LOOK_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

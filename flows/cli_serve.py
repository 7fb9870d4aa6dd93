"""The commands that stay: the live process alone, and everything of one machine."""

import os
import signal
import sys
import threading
import time
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.cli_options import Changes, Config, load_settings, now
from flows.console import errors_to_exit_codes, out


def live(
    check: Annotated[
        bool,
        typer.Option("--check", help="Only say whether one looked at a feed within five minutes (exit code 3: no)."),
    ] = False,
    config: Config = None,
    changes: Changes = None,
) -> None:
    """Forecast every domain as its data come, until SIGTERM or Ctrl-C; a second one stands by. Logs on stderr."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose=not check)
        if check:
            from pipeline.catalog import Catalog
            from pipeline.heartbeat import check_alive
            from pipeline.times import iso

            with closing(Catalog(settings.catalog)) as catalog:
                out.print(f"a feed was looked at at {iso(check_alive(catalog, now()))}", highlight=False)
            return
        from flows.live import Recorder
        from pipeline import times
        from pipeline.resident import run_live

        stop = _stop_at_signals()
        recorder = Recorder(settings)
        try:
            run_live(settings, times.SystemClock(now()), stop, after=recorder.record, emit=recorder.emit)
        finally:
            recorder.close()
    # Prefect's threads may wait for a server that is gone; what is ours is done
    sys.stderr.flush()
    os._exit(0)


def up(config: Config = None) -> None:
    """Everything of one machine: live process, Prefect server and worker, schedules; until SIGTERM or Ctrl-C."""
    with errors_to_exit_codes():
        settings = load_settings(config, None)
        from flows import up as service

        service.up(settings, _say)


def _say(text: str) -> None:
    out.print(f"[dim]{time.strftime('%H:%M:%S', time.gmtime())}[/] {escape(text)}", highlight=False)


def _stop_at_signals() -> threading.Event:
    stop = threading.Event()

    def asked(number: int, frame: Any) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    return stop

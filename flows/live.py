"""The live process and Prefect: each batch is recorded as a run of the flow ``cycle``, and alerts become events.

That happens after its forecasts are out, in a thread with a queue of its own, so that a server that is slow, full or
gone never delays a forecast.
"""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from flows.artifacts import outcome_lines
from flows.prefect_link import own_loggers, prefect_settings, server_answers
from pipeline.publish import Outcome
from pipeline.settings import Settings, hide_secrets
from pipeline.times import iso

Batch = list[Outcome]

# batches that wait for the server; when there are more, the newest are not shown
WAITING = 100
# log lines kept for the next run
LINES = 1000
# after a failed recording the server is left alone for so long
REST_S = 30.0
CLOSE_S = 3.0

log = logging.getLogger(__name__)


class _Lines(logging.Handler):
    """Keeps the newest log records of our rooms until a run takes them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records = [*self._records[-LINES + 1 :], record]

    def take(self) -> list[logging.LogRecord]:
        self.acquire()
        try:
            taken, self._records = self._records, []
        finally:
            self.release()
        return taken


class Recorder:
    """Hands batches of the live process to Prefect, from a thread of its own.

    Args:
        settings: where the server is (``prefect_api_url``) and where Prefect keeps its state (``root``).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(WAITING)
        self._stop = threading.Event()
        self._lines = _Lines()
        for logger in own_loggers():
            logger.addHandler(self._lines)
        self._thread = threading.Thread(target=self._run, name="prefect recorder", daemon=True)
        self._thread.start()

    def record(self, batch: Batch) -> None:
        """Take a batch that is done; returns at once."""
        self._put(partial(record_cycle, self._settings, batch, self._lines.take()))

    def emit(self, name: str, resource: str, payload: dict[str, Any]) -> None:
        """Take an event about ``resource``; returns at once."""
        self._put(partial(_emit, self._settings, name, resource, payload))

    def _put(self, what: Callable[[], None]) -> None:
        try:
            self._waiting.put_nowait(what)
        except queue.Full:
            log.info("a batch or an event is not shown in Prefect, whose server is too slow")

    def close(self) -> None:
        """Hand over what waits, for at most three seconds."""
        self._stop.set()
        self._thread.join(CLOSE_S)
        for logger in own_loggers():
            logger.removeHandler(self._lines)

    def _run(self) -> None:
        while not (self._stop.is_set() and self._waiting.empty()):
            try:
                show = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                # none answers: the usual case where nobody wants Prefect
                if server_answers(self._settings.prefect_api_url):
                    show()
            except Exception as error:  # forecasts go on, whatever it is
                log.warning("a batch or an event is not shown in Prefect: %r", error)
                self._stop.wait(REST_S)
            finally:
                self._waiting.task_done()


def _emit(settings: Settings, name: str, resource: str, payload: dict[str, Any]) -> None:
    with prefect_settings(settings.root, settings.prefect_api_url):
        from flows.events import emit

        emit(name, resource, payload)


def record_cycle(settings: Settings, batch: Batch, lines: list[logging.LogRecord]) -> None:
    """A run of the flow ``cycle`` with the batch as its artifact and the log lines as its log, in this thread."""
    with prefect_settings(settings.root, settings.prefect_api_url):
        from prefect import flow
        from prefect.artifacts import create_markdown_artifact
        from prefect.logging.handlers import APILogHandler

        from flows.domains import end

        # a line of Prefect's own for every begin and end says nothing beside ours
        logging.getLogger("prefect.flow_runs").setLevel(logging.WARNING)
        to_server = APILogHandler()

        newest = max(outcome.reference_time for outcome in batch)
        name = f"{iso(newest)} {', '.join(sorted({outcome.domain for outcome in batch}))}"
        said, problems = outcome_lines(batch)

        # made here, since it is called in this process only: parameters, which the server keeps, stay small
        @flow(name="cycle", flow_run_name=name[:200])
        def cycle() -> object:
            """A batch of the live process, recorded after its forecasts were published."""
            for record in lines:
                to_server.emit(record)
            text = "\n".join([f"# {name}", "", *(f"- {line}" for line in said)])
            create_markdown_artifact(hide_secrets(text), key="cycle")
            return end([], problems)

        cycle(return_state=True)

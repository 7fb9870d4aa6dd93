"""Many cycles: in chunks, in this process or in several, each forecast once whoever else is at work."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from multiprocessing import get_context

from pipeline import logs, nowcast
from pipeline.catalog import Catalog
from pipeline.publish import Outcome
from pipeline.settings import Domain, Settings
from pipeline.storage import Store

# cycles that go through the model together and are claimed together
CHUNK = 4
# cycles that another process holds are asked for again, until nothing has moved for this long
HELD_PATIENCE_S = 60.0
HELD_PAUSE_S = 1.0


def issue_cycles(
    settings: Settings, domain: Domain, reference_times: list[datetime], kind: str, now: datetime, workers: int
) -> Iterator[Outcome]:
    """Each cycle once, as it is done; those that another process holds come last, when it has let go."""
    held = []
    for outcome in _issue_chunks(settings, domain, reference_times, kind, now, workers):
        if outcome.state == "held":
            held.append(outcome.reference_time)
        else:
            yield outcome
    patience = time.monotonic() + HELD_PATIENCE_S
    while held:
        time.sleep(HELD_PAUSE_S)
        still = []
        for outcome in _issue_chunks(settings, domain, held, kind, now, 1):
            if outcome.state == "held" and time.monotonic() < patience:
                still.append(outcome.reference_time)
            else:
                yield outcome
        if len(still) < len(held):  # the other process is at work
            patience = time.monotonic() + HELD_PATIENCE_S
        held = still


def _issue_chunks(
    settings: Settings, domain: Domain, reference_times: list[datetime], kind: str, now: datetime, workers: int
) -> Iterator[Outcome]:
    chunks = [reference_times[n : n + CHUNK] for n in range(0, len(reference_times), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        worker = _Worker(settings, domain)
        for chunk in chunks:
            yield from worker.issue(chunk, kind, now)
        worker.catalog.close()
        return
    # spawn: forking a process with torch or HDF5 threads can deadlock
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(settings, domain, logs.current_context())
    ) as pool:
        pending = [pool.submit(_work, chunk, kind, now) for chunk in chunks]
        try:
            for future in as_completed(pending):
                yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C only what is begun is finished


class _Worker:
    """One process that forecasts; the model is loaded at the first cycle, when the grid is known."""

    def __init__(self, settings: Settings, domain: Domain) -> None:
        self.settings, self.domain = settings, domain
        self.store, self.catalog = Store(settings.root), Catalog(settings.catalog)
        self._methods: nowcast.Methods | None = None

    def issue(self, reference_times: list[datetime], kind: str, now: datetime) -> list[Outcome]:
        def methods(spacing_m: float) -> nowcast.Methods:
            if self._methods is None:
                self._methods = nowcast.load_methods(self.domain, self.store, self.settings.threads, spacing_m)
            return self._methods

        return nowcast.issue(self.domain, self.store, self.catalog, methods, reference_times, kind, now)


_worker: _Worker | None = None


def _start_worker(settings: Settings, domain: Domain, context: dict[str, str]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the parent decides
    logs.configure(settings.log_format)
    logs._context.set(context)
    _worker = _Worker(settings, domain)


def _work(reference_times: list[datetime], kind: str, now: datetime) -> list[Outcome]:
    assert _worker is not None  # the pool runs the initializer first
    return _worker.issue(reference_times, kind, now)

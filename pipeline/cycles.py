"""Many cycles: in chunks, in this process or in several, each forecast once whoever else is at work."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from datetime import datetime
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process

from pipeline import dask_cluster, logs, nowcast
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.errors import NowcastError, WorkerLost
from pipeline.issue import Wanted, issue, record_failure
from pipeline.publish import Outcome
from pipeline.settings import Settings
from pipeline.storage import open_store
from pipeline.times import Clock

# cycles that go through the model together and are claimed together
CHUNK = 4
# cycles that another process holds are asked for again, until nothing has moved for this long
HELD_PATIENCE_S = 600.0
HELD_PAUSE_S = 1.0


def issue_cycles(
    settings: Settings,
    domain: Domain,
    reference_times: list[datetime],
    kind: str,
    clock: Clock,
    workers: int,
    dask: str | None = None,
) -> Generator[Outcome, None, None]:
    """Each cycle once, as it is done; those that another process holds come last, when it has let go.

    Close the iterator (``contextlib.closing``) where it may be left early: what is begun is then finished, no more.

    Args:
        workers: processes that forecast.
        dask: they are those of the Dask scheduler at this address, or of a cluster on this machine (``local``).

    Raises:
        WorkerLost: a process that forecasts was killed from outside.
    """
    held = []
    with closing(_issue_chunks(settings, domain, reference_times, kind, clock, workers, dask)) as outcomes:
        for outcome in outcomes:
            if outcome.state == "held":
                held.append(outcome.reference_time)
            else:
                yield outcome
    if not held:
        return
    with closing(_Worker(settings, domain)) as worker:
        patience = time.monotonic() + HELD_PATIENCE_S
        while held:
            time.sleep(HELD_PAUSE_S)
            still = []
            for chunk in _chunks(held):
                for outcome in worker.issue(chunk, kind, clock):
                    if outcome.state != "held":
                        patience = time.monotonic() + HELD_PATIENCE_S  # the other process is at work
                        yield outcome
                    elif time.monotonic() < patience:
                        still.append(outcome.reference_time)
                    else:  # to abandon a cycle is no sign of work: those that are left are not waited for anew
                        yield outcome
            held = still


def _chunks(reference_times: list[datetime]) -> list[list[datetime]]:
    return [reference_times[n : n + CHUNK] for n in range(0, len(reference_times), CHUNK)]


def _issue_chunks(
    settings: Settings,
    domain: Domain,
    reference_times: list[datetime],
    kind: str,
    clock: Clock,
    workers: int,
    dask: str | None,
) -> Generator[Outcome, None, None]:
    chunks = _chunks(reference_times)
    workers = min(workers, len(chunks))
    context = logs.current_context()
    if dask is not None:
        with dask_cluster.connect(settings, dask, workers) as (executor, size):
            yield from _handed_out(
                executor, size, chunks, partial(_work_of_dask, settings, domain, context, kind), clock
            )
        return
    if workers <= 1:
        with closing(_Worker(settings, domain)) as worker:
            for chunk in chunks:
                yield from worker.issue(chunk, kind, clock)
        return
    # spawn: forking a process with torch or HDF5 threads can deadlock
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(settings, domain, context)
    )
    try:
        yield from _handed_out(pool, workers, chunks, partial(_work, kind), clock)
    except BrokenProcessPool as err:
        raise WorkerLost(
            f"a process that forecasts for {domain.name} was killed, perhaps for want of memory; what was published "
            "stands, the same command with fewer workers goes on"
        ) from err
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _handed_out(
    executor: Executor,
    size: int,
    chunks: list[list[datetime]],
    work: Callable[[list[datetime], datetime], list[Outcome]],
    clock: Clock,
) -> Generator[Outcome, None, None]:
    waiting = iter(chunks)
    # no more than the workers can begin at once, so that nothing is left to be done after Ctrl-C
    pending = {executor.submit(work, chunk, clock.now()) for chunk in islice(waiting, size)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        pending |= {executor.submit(work, chunk, clock.now()) for chunk in islice(waiting, len(done))}
        for future in done:
            yield from future.result()


class _Worker:
    """One process that forecasts."""

    def __init__(self, settings: Settings, domain: Domain) -> None:
        self.settings, self.domain = settings, domain
        self.store, self.catalog = open_store(settings), Catalog(settings.catalog)
        self.loader = nowcast.Loader(self.store, settings, self.catalog)

    def close(self) -> None:
        """Give the catalog's connections back."""
        self.catalog.close()

    def issue(self, reference_times: list[datetime], kind: str, clock: Clock) -> list[Outcome]:
        """See ``pipeline.issue``; a fault of the software is that of one cycle, which is recorded as skipped.

        Raises:
            NowcastError: what will be the same for all: the store, the settings.
        """
        wanted = [Wanted(self.domain, time) for time in reference_times]
        outcomes = []
        for outcome in issue(self.store, self.catalog, self.loader.methods, wanted, kind, clock):
            if isinstance(outcome.error, NowcastError):
                raise outcome.error
            outcomes.append(outcome)
        return [  # when their leases are free again
            record_failure(self.store, self.catalog, self.domain, outcome, kind, clock.now())
            if outcome.error is not None
            else outcome
            for outcome in outcomes
        ]


_worker: _Worker | None = None


def _start_worker(settings: Settings, domain: Domain, context: dict[str, str]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the parent decides
    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    logs.configure(settings.log_format)
    logs.take_context(context)
    _worker = _Worker(settings, domain)


def end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(kind: str, reference_times: list[datetime], now: datetime) -> list[Outcome]:
    assert _worker is not None  # the pool runs the initializer first
    return _worker.issue(reference_times, kind, Clock(now))


def _work_of_dask(
    settings: Settings,
    domain: Domain,
    context: dict[str, str],
    kind: str,
    reference_times: list[datetime],
    now: datetime,
) -> list[Outcome]:
    """One chunk on a worker that serves whoever asks; it keeps what it has loaded until other settings come."""
    import dask

    global _worker
    if _worker is None or (_worker.settings, _worker.domain) != (settings, domain):
        if _worker is not None:
            _worker.close()
        logs.configure(settings.log_format)
        _worker = _Worker(settings, domain)
    # in a worker xarray would take its locks from the scheduler, for every variable of a file of ours alone
    with dask.config.set(scheduler="synchronous"), logs.log_context(**context):
        return _worker.issue(reference_times, kind, Clock(now))

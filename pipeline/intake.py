"""Feeds are polled beside the forecasts: in processes of their own, or, for a replay, on the spot."""

import logging
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from typing import Protocol

from pipeline import logs
from pipeline.catalog import Catalog
from pipeline.cycles import end_with_parent
from pipeline.domain import Domain
from pipeline.errors import AtWork, NowcastError, reason_of
from pipeline.ingest import IngestResult, ingest
from pipeline.settings import Settings
from pipeline.source_settings import PolarSource
from pipeline.storage import Store, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Polled:
    """What one look at a feed gave.

    Attributes:
        result: None if the feed could not be read.
        fault: why; or what is wrong with the source as a whole.
    """

    domain: str
    start: datetime
    end: datetime
    result: IngestResult | None
    fault: str = ""


class Intake(Protocol):
    """Looks at feeds; at most one look at a feed at a time."""

    def begin(self, domain: Domain, start: datetime, end: datetime, now: datetime) -> None:
        """Begin to take in what the source has for the instants in [start, end]."""
        ...

    def is_busy(self, domain: Domain) -> bool:
        """Whether a look at the domain's feed has not ended."""
        ...

    def finished(self) -> list[Polled]:
        """Looks that have ended since the last call."""
        ...

    def close(self) -> None:
        """End; a look that goes on is cut off, which harms nothing."""
        ...


class OnTheSpot:
    """Takes in within the call."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.store, self.catalog = store, catalog
        self._done: list[Polled] = []

    def begin(self, domain: Domain, start: datetime, end: datetime, now: datetime) -> None:
        """See ``Intake``."""
        self._done.append(_poll(self.store, self.catalog, domain, start, end, now))

    def is_busy(self, domain: Domain) -> bool:
        """Never."""
        return False

    def finished(self) -> list[Polled]:
        """See ``Intake``."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing is open."""


class InProcesses:
    """Takes in beside the caller, so that neither a slow feed nor a decoder that crashes holds up a forecast.

    Feeds that were at work when a process died go on in a process of their own each, so that the one at fault harms no
    other; after a good look they are with the others again.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pools: dict[str, ProcessPoolExecutor] = {}  # by the feed that has it alone; "" is that of all others
        self._begun: dict[str, tuple[Future[Polled], datetime, datetime, str]] = {}
        self._crashed: set[str] = set()

    def begin(self, domain: Domain, start: datetime, end: datetime, now: datetime) -> None:
        """See ``Intake``."""
        whose = domain.name if domain.name in self._crashed else ""
        if whose and isinstance(domain.source, PolarSource):
            # each volume in a process of its own, so that the one that kills it is found and set aside
            source = domain.source.model_copy(update={"processes": max(2, domain.source.processes)})
            domain = domain.model_copy(update={"source": source})
        try:
            future = self._running(whose).submit(_poll_in_process, domain, start, end, now)
        except BrokenProcessPool:  # broken since the last look
            del self._pools[whose]
            future = self._running(whose).submit(_poll_in_process, domain, start, end, now)
        self._begun[domain.name] = future, start, end, whose

    def is_busy(self, domain: Domain) -> bool:
        """See ``Intake``."""
        return domain.name in self._begun

    def finished(self) -> list[Polled]:
        """See ``Intake``."""
        done = []
        for name, (future, start, end, whose) in list(self._begun.items()):
            if not future.done():
                continue
            del self._begun[name]
            try:
                done.append(future.result())
                self._crashed.discard(name)
                if whose:
                    self._pools.pop(whose).shutdown(wait=False)
            except BrokenProcessPool:
                # every feed that was being read is lost with the process; the one at fault is not known
                self._pools.pop(whose, None)
                self._crashed.add(name)
                done.append(Polled(name, start, end, None, "a process that takes in data was killed"))
        return done

    def close(self) -> None:
        """See ``Intake``."""
        for pool in self._pools.values():
            # a look may take long, and what it has not recorded is taken in by the next
            for process in list(pool._processes.values()):
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)

    def _running(self, whose: str) -> ProcessPoolExecutor:
        if whose not in self._pools:
            self._pools[whose] = ProcessPoolExecutor(
                1 if whose else self.settings.live.ingest_processes,
                get_context("spawn"),  # forking a process with torch or HDF5 threads can deadlock
                initializer=_start,
                initargs=(self.settings, logs.current_context()),
            )
        return self._pools[whose]


_root: tuple[Store, Catalog] | None = None


def _start(settings: Settings, context: dict[str, str]) -> None:
    global _root
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the parent decides
    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    logs.configure(settings.log_format)
    logs.take_context(context)
    _root = open_store(settings), Catalog(settings.catalog)


def _poll_in_process(domain: Domain, start: datetime, end: datetime, now: datetime) -> Polled:
    assert _root is not None  # the pool runs the initializer first
    return _poll(*_root, domain, start, end, now)


def _poll(store: Store, catalog: Catalog, domain: Domain, start: datetime, end: datetime, now: datetime) -> Polled:
    with logs.log_context(domain=domain.name):
        try:
            result = ingest(domain, store, catalog, start, end, now, patience_s=0.0)
            return Polled(domain.name, start, end, result, "; ".join(result.problems))
        except AtWork:  # what it leaves is there at the next look
            return Polled(domain.name, start, end, IngestResult())
        except NowcastError as err:
            fault = str(err)
        except Exception as err:  # of one feed; the others go on
            log.exception("taking in failed")
            fault = reason_of(err)
        return Polled(domain.name, start, end, None, fault)

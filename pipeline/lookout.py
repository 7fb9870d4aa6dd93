"""Beside the live process: webhooks of warnings, alerts, the status page, map pages that show an older forecast."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from functools import partial

from pipeline import alerts, operations, status_page, times
from pipeline.alert_rules import Finding, software_fault
from pipeline.catalog import Catalog
from pipeline.errors import NowcastError, machine_fault, reason_of
from pipeline.settings import Settings
from pipeline.storage import Store, open_store
from pipeline.timeline import DAY
from pipeline.warnings.watch import deliver

log = logging.getLogger(__name__)

EVERY_S = 60.0
CLOSE_S = 3.0


class Lookout:
    """A thread of its own, so that it never holds up a forecast; it looks every minute, and after each batch.

    Args:
        emit: takes the events of alerts to whoever wants them.
    """

    def __init__(self, settings: Settings, clock: times.Clock, emit: alerts.Emit | None) -> None:
        self.settings, self.clock, self.emit = settings, clock, emit
        self._stop, self._wake = threading.Event(), threading.Event()
        self._faults: dict[str, tuple[datetime, str]] = {}  # by domain: when the last one was met, and its text
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There are new forecasts: look now."""
        self._wake.set()

    def report(self, domain: str, fault: str) -> None:
        """Take a fault of the software that the live process met in the work for a domain; empty is all of them."""
        self._faults[domain] = self.clock.now(), fault

    def close(self) -> None:
        """End, soon."""
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_S)  # what it does is done again; it must not hold up the end

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(EVERY_S)
            self._wake.clear()
            try:
                with closing(Catalog(self.settings.catalog)) as catalog:
                    store, faults = open_store(self.settings), dict(self._faults)
                    look(self.settings, store, catalog, self.clock, self.emit, faults)
            except NowcastError as err:
                log.warning("the lookout waits: %s", err)
            except Exception:
                log.exception("the lookout failed")


def look(
    settings: Settings,
    store: Store,
    catalog: Catalog,
    clock: times.Clock,
    emit: alerts.Emit | None = None,
    faults: Mapping[str, tuple[datetime, str]] | None = None,
) -> None:
    """One look; what fails does not keep the rest from being done, and is an alert.

    Args:
        faults: of the software, by domain: when the last one was met in other work, and its text.
    """
    now = clock.now()
    findings = [
        software_fault(domain, "live", fault) for domain, (met, fault) in (faults or {}).items() if now - met < DAY
    ]
    steps: list[tuple[str, str, Callable[[], object]]] = [
        *((name, "warnings", partial(deliver, domain, store, catalog)) for name, domain in settings.domains.items()),
        ("", "status page", lambda: status_page.write(settings, store, catalog, now)),
    ]
    for name in settings.domains:
        if store.has(store.view(name) / "index.html"):
            steps.append((name, "map page", partial(operations.view, settings, name, None, None, only_if_new=True)))
    for name, work, step in steps:
        findings += _attempt(name, work, step)
    _attempt("", "alerts", lambda: alerts.check(settings, store, catalog, clock.now(), emit, findings))


def _attempt(name: str, work: str, step: Callable[[], object]) -> list[Finding]:
    """Do a step, on which the next one does not depend; a finding if it met a fault of the software."""
    try:
        step()
    except NowcastError as err:
        log.warning("not done: %s", err)
    except Exception as err:
        log.exception("not done: %s of %s", work, name or "the system")
        if not machine_fault(err):
            return [software_fault(name, work, reason_of(err))]
    return []

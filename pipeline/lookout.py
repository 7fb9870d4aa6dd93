"""Beside the live process: webhooks of warnings, alerts, the status page, map pages that show an older forecast."""

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial

from pipeline import alerts, operations, status_page, times
from pipeline.catalog import Catalog
from pipeline.errors import NowcastError
from pipeline.settings import Settings
from pipeline.storage import Store, open_store
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
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There are new forecasts: look now."""
        self._wake.set()

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
                    look(self.settings, open_store(self.settings), catalog, self.clock, self.emit)
            except NowcastError as err:
                log.warning("the lookout waits: %s", err)
            except Exception:
                log.exception("the lookout failed")


def look(
    settings: Settings, store: Store, catalog: Catalog, clock: times.Clock, emit: alerts.Emit | None = None
) -> None:
    """One look; what fails does not keep the rest from being done."""
    steps: list[Callable[[], object]] = [
        *(partial(deliver, domain, store, catalog) for domain in settings.domains.values()),
        lambda: alerts.check(settings, store, catalog, clock.now(), emit),
        lambda: status_page.write(settings, store, catalog, clock.now()),
    ]
    for name in settings.domains:
        if store.has(store.view(name) / "index.html"):
            steps.append(partial(operations.view, settings, name, None, None, only_if_new=True))
    for step in steps:
        try:
            step()
        except NowcastError as err:
            log.warning("not done: %s", err)
        except Exception:  # the next step does not depend on it
            log.exception("not done")

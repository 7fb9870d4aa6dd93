"""Once a minute, beside the live process: alerts, the status page, and map pages that show an older forecast."""

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from pipeline import alerts, operations, status_page, times
from pipeline.catalog import Catalog
from pipeline.errors import NowcastError
from pipeline.settings import Settings
from pipeline.storage import Store, open_store

log = logging.getLogger(__name__)

EVERY_S = 60.0


class Lookout:
    """A thread of its own, so that it never holds up a forecast.

    Args:
        emit: takes the events of alerts to whoever wants them.
    """

    def __init__(self, settings: Settings, clock: times.Clock, emit: alerts.Emit | None) -> None:
        self.settings, self.clock, self.emit = settings, clock, emit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after what is begun."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
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
        lambda: alerts.check(settings, store, catalog, clock.now(), emit),
        lambda: status_page.write(settings, store, catalog, clock.now()),
    ]
    for name in settings.domains:
        if store.has(store.view(name) / "index.html"):
            steps.append(lambda name=name: operations.view(settings, name, None, None, only_if_new=True))  # type: ignore[misc]
    for step in steps:
        try:
            step()
        except (NowcastError, OSError, ValueError, KeyError) as err:
            log.warning("not done: %s", err)

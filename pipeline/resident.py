"""The resident process, its watchdog, and who of them is at work: the holder of the lease ``live``."""

import faulthandler
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime

from pipeline import alerts, times
from pipeline.errors import NowcastError, machine_fault, reason_of
from pipeline.heartbeat import LIVE
from pipeline.intake import InProcesses, Intake, OnTheSpot
from pipeline.live import Live
from pipeline.lookout import Lookout
from pipeline.operations import Step, bare, open_root
from pipeline.publish import Outcome
from pipeline.settings import Settings
from pipeline.warnings.watch import deliver

log = logging.getLogger(__name__)

# between two looks of one that stands by, and after a failure of the catalog or a store
STAND_BY_S, WAIT_S = 2.0, 5.0


def run_live(
    settings: Settings,
    clock: times.Clock,
    stop: threading.Event,
    after: Callable[[list[Outcome]], None] = lambda outcomes: None,
    emit: alerts.Emit | None = None,
) -> None:
    """Be the resident process until ``stop``; while another one is, stand by to take over.

    Forecasts that are begun when ``stop`` comes are finished; a look at a feed is cut off, and done again later.

    Args:
        after: called with the outcomes of each batch.
        emit: takes the events of alerts.

    A step that lasts longer than ``live.stuck_after_s`` ends the whole process, with the stack of every thread in its
    output: what hangs cannot be asked to stop, and whoever started the process starts it again.

    Raises:
        StoreUnavailable: at the start; later it is waited for.
    """
    store, catalog = open_root(settings)
    with closing(catalog):
        while not stop.is_set():
            try:
                with catalog.lease(LIVE) as lease:
                    if lease is None:
                        log.info("another process is live; standing by")
                        stop.wait(STAND_BY_S)
                        continue
                    intake: Intake = (
                        InProcesses(settings) if settings.live.ingest_processes else OnTheSpot(store, catalog)
                    )
                    with closing(intake), closing(Lookout(settings, clock, emit)) as lookout:

                        def done(outcomes: list[Outcome], lookout: Lookout = lookout) -> None:
                            lookout.wake()
                            after(outcomes)

                        live = Live(settings, store, catalog, clock, intake, after=done, report=lookout.report)
                        try:
                            while not (stop.is_set() or lease.lost):
                                faulthandler.dump_traceback_later(settings.live.stuck_after_s, exit=True, file=2)
                                stop.wait(_step(live, lookout))
                        finally:
                            faulthandler.cancel_dump_traceback_later()
            except NowcastError as err:
                log.warning("waiting: %s", err)
                stop.wait(WAIT_S)


def _step(live: Live, lookout: Lookout) -> float:
    """One step; after a failure of the catalog or a store what is loaded stays, and the next step tries again.

    So it does after a fault of the software that concerns no single domain: a restart would only meet it again.
    """
    try:
        return live.step()
    except NowcastError as err:
        log.warning("waiting: %s", err)
    except Exception as err:
        fault = machine_fault(err)
        log.error("the step of the live process failed: %s", reason_of(err), exc_info=not fault)
        if not fault:
            lookout.report("", reason_of(err))
    return WAIT_S


def tick_once(settings: Settings, now: datetime, step: Step = bare) -> list[Outcome] | None:
    """What the resident process would do now, if there is none: the watchdog's work.

    Returns:
        Outcomes of the cycles that were due; None if a resident process is at work.
    """
    # all feeds are looked at before anything is forecast, so there is nobody to wait for
    settings = settings.model_copy(update={"live": settings.live.model_copy(update={"batch_wait_s": 0.0})})
    store, catalog = open_root(settings)
    outcomes: list[Outcome] = []
    with closing(catalog), catalog.lease(LIVE) as lease:
        if lease is None:
            return None
        clock = times.Clock(now)
        live = Live(settings, store, catalog, clock, OnTheSpot(store, catalog), step, outcomes.extend)
        while True:
            before = len(outcomes)
            live.step()
            at_work = any(feed.due_since or feed.has_missed(clock.now()) for feed in live.feeds)
            if len(outcomes) == before and not at_work:
                for domain in settings.domains.values():
                    deliver(domain, store, catalog)
                return outcomes

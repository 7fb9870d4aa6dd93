"""The live process of a soak: a child that is told the time and the faults it meets, and dies at a given point."""

import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from models.forecaster import Forecaster
from pipeline import catalog as tables
from pipeline import logs, lookout, nowcast, operations
from pipeline.errors import AtWork, NowcastError, machine_fault
from pipeline.heartbeat import LIVE
from pipeline.intake import OnTheSpot
from pipeline.live import Live
from pipeline.settings import Settings
from tests.simulation import SimulatedClock
from tests.soak.machines import pretend
from tests.soak.schedule import MARK, Order
from tests.soak.system_calls import FailingCalls, few_descriptors

# what a process does on its way to a product; it may be killed at any of these
POINTS = {"open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect"}
# of the wall clock: simulated time goes a hundred times as fast
LEASE_S = 2.0
LOOKOUT_EVERY = timedelta(minutes=30)
ERRORS = (IndexError, TypeError, KeyError)


@dataclass
class Answer:
    """What came of a step.

    Attributes:
        memory: resident, bytes.
        points: passed since the process began.
        happened: faults that were met, by call.
        waited: reasons why a step ended early and was left to the next one, with how often.
        unforeseen: tracebacks of what no step should let through.
        reported: faults of the software that the live process told of.
    """

    memory: int
    points: int
    happened: Counter[str] = field(default_factory=Counter)
    waited: Counter[str] = field(default_factory=Counter)
    unforeseen: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)


def die_at(count: int) -> list[int]:
    """SIGKILL this process at its n-th point, the same in every run of a seed; 0 is never.

    Returns:
        How many points were passed, kept up to date.
    """
    passed = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in POINTS and (event != "open" or not str(arguments[0]).endswith((".py", ".pyc"))):
            passed[0] += 1
            if passed[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return passed


class RaisingMethods:
    """Forecasting methods, and the choice between them, that raise what nobody foresaw while ``share`` is not 0."""

    def __init__(self, seed: int) -> None:
        self.share, self.happened, self._random = 0.0, Counter[str](), random.Random(seed)
        for owner, name in ((Forecaster, "predict"), (nowcast.Loader, "methods"), (nowcast, "with_fallbacks")):
            setattr(owner, name, self._wrapped(name, getattr(owner, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self.share and self._random.random() < self.share:
                self.happened[name] += 1
                raise self._random.choice(ERRORS)(f"{name}: {MARK}")
            return call(*arguments, **options)

        return wrapped


class Resident:
    """What ``pipeline.resident`` does in its loop, step by step under a simulated clock, with the lease of its root."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self.settings, self.clock = settings, SimulatedClock(now)
        self._held, self._live, self._next_look = ExitStack(), None, now
        self._faults: dict[str, tuple[datetime, str]] = {}
        self.waited, self.unforeseen, self.reported = Counter[str](), list[str](), list[str]()

    @property
    def is_live(self) -> bool:
        """Whether it has become the live process."""
        return self._live is not None

    def step(self, now: datetime) -> None:
        """Do all that is due; what fails is left to the next step."""
        self.clock.set(now)
        try:
            if self._live is None or self._lease.lost:
                self._begin()
            while self._live.step() == 0 and not self._lease.lost:
                pass
            if now >= self._next_look:
                self._next_look = now + LOOKOUT_EVERY
                lookout.look(self.settings, self._store, self._catalog, self.clock, faults=self._faults)
        except NowcastError as err:
            self.waited[f"{type(err).__name__}: {machine_fault(err) or str(err)[-60:]}"] += 1
        except Exception:
            self.unforeseen.append(traceback.format_exc())

    def close(self) -> None:
        """Give the lease back."""
        self._live = None
        self._held.close()

    def _begin(self) -> None:
        self.close()
        with ExitStack() as held:
            self._store, self._catalog = operations.open_root(self.settings)
            held.callback(self._catalog.close)
            self._lease = held.enter_context(self._catalog.lease(LIVE, patience_s=2 * LEASE_S))
            if self._lease is None:
                raise AtWork("another process is live")
            intake = OnTheSpot(self._store, self._catalog)
            self._live = Live(self.settings, self._store, self._catalog, self.clock, intake, report=self._report)
            self._held = held.pop_all()

    def _report(self, domain: str, fault: str) -> None:
        self._faults[domain] = self.clock.now(), fault
        self.reported.append(f"{domain}: {fault}")


def work(
    settings: Settings, orders: Connection, points: int, machine: int, folder: Path, now: datetime, seed: int
) -> None:
    """Follow orders until None comes; answer each.

    Args:
        points: after as many it dies.
        machine: that it pretends to be on, noted in the folder; see ``tests.soak.machines``.
    """
    logs.configure("text")
    tables.LEASE_S = LEASE_S
    pretend(machine, folder)
    passed: list[int] = []
    resident, methods = Resident(settings, now), RaisingMethods(seed)
    failing = [settings.root, *(Path(domain.source.uri) for domain in settings.domains.values())]
    calls = FailingCalls(failing, settings.root / "catalog.sqlite", seed)
    while (order := orders.recv()) is not None:
        _do(order, resident, methods, calls)
        if resident.is_live and not passed:  # to begin is no work that could be lost
            passed = die_at(points)
        happened = calls.happened + methods.happened
        answer = Answer(resident_bytes(), passed[0] if passed else 0, happened)
        answer.waited, answer.unforeseen, answer.reported = resident.waited, resident.unforeseen, resident.reported
        orders.send(answer)
        for seen in (calls.happened, methods.happened, resident.waited, resident.unforeseen, resident.reported):
            seen.clear()
    resident.close()


def _do(order: Order, resident: Resident, methods: RaisingMethods, calls: FailingCalls) -> None:
    methods.share, calls.share = order.raising, order.failing
    try:
        with few_descriptors(order.descriptors):
            resident.step(order.now)
    finally:
        methods.share = calls.share = 0.0


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

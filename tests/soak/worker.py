"""The live process of a soak: a child that is told the time, and dies at a given point."""

import os
import signal
import sys
from multiprocessing.connection import Connection

from pipeline import logs, operations
from pipeline.intake import OnTheSpot
from pipeline.live import Live
from pipeline.settings import Settings
from tests.simulation import SimulatedClock

# what a process does on its way to a product; it may be killed at any of these
POINTS = {"open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect"}


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


def work(settings: Settings, start, orders: Connection, points: int) -> None:
    """Do what is due at each time that comes; answer with the resident memory in bytes and the points passed."""
    logs.configure("text")
    store, catalog = operations.open_root(settings)
    clock = SimulatedClock(start)
    live = Live(settings, store, catalog, clock, OnTheSpot(store, catalog))
    passed = die_at(points)
    while (now := orders.recv()) is not None:
        clock.set(now)
        while live.step() == 0:
            pass
        orders.send((resident_bytes(), passed[0]))


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

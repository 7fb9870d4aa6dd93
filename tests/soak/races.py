"""Two processes at one cycle, many times: at once, and one of them stopped until its lease has expired.

    python -m tests.soak.races --races 1000 --pauses 100 --catalog sqlite|postgresql --seed N

Whatever happens, one product with its companion stands, whole, with one row that says its digest; nothing else is left.
Prints a summary as JSON; the exit status is 1 if something else was found. The seed repeats the order and the delays;
where exactly a process is stopped depends on the machine.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import nowcast, operations, packing, times
from pipeline.catalog import Catalog
from pipeline.errors import NowcastError
from pipeline.issue import Wanted, issue
from pipeline.settings import Settings
from pipeline.storage import Store
from tests import postgres_server
from tests.conftest import NOW, synthetic_domain

SPAWN = multiprocessing.get_context("spawn")
T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
CYCLES = [T0 + n * timedelta(minutes=10) for n in range(8)]
# of the lease of a process that is stopped, and how long another one then tries
LEASE_S, TRIES_S = 0.4, 1.2
# both begin so long after the order was given
LEAD_S = 0.004
# half of the races begin within this time; in the others the second comes at any moment of the first one's work
AT_ONCE_S = 0.005


@dataclass
class Summary:
    """What was seen; ``outcomes`` counts what both processes said, ``faults`` is to be empty."""

    catalog: str
    seed: int
    races: int = 0
    pauses: int = 0
    taken_over: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seconds_of_one_issue: float = 0.0


@dataclass(frozen=True)
class _Order:
    """Issue the cycle at ``start`` (monotonic clock); while another process holds it, try again until ``latest``."""

    cycle: datetime
    start: float
    latest: float


class _Runner:
    """A process that issues what it is told to."""

    def __init__(self, settings: Settings, lease_s: float) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(settings, lease_s, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def close(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.pipe.send(None)
        self.process.join(30)
        self.process.kill()


def _work(settings: Settings, lease_s: float, orders: Connection) -> None:
    tables.LEASE_S = lease_s
    domain = settings.domain("small")
    store, catalog = Store(settings.root), Catalog(settings.catalog)
    methods = nowcast.Loader(store, settings, catalog).methods(domain, 2000.0)
    methods = replace(methods, optical_flow=methods.last_frame)  # what is forecast does not matter here
    orders.send(("ready", 0.0))
    while order := orders.recv():
        time.sleep(max(0.0, order.start - time.monotonic() - 0.002))
        while time.monotonic() < order.start:
            pass
        while True:
            began = time.monotonic()
            try:
                wanted = [Wanted(domain, order.cycle)]
                (outcome,) = issue(store, catalog, lambda *_: methods, wanted, "hindcast", times.Clock(NOW))
                state = outcome.state if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}"
            except NowcastError as err:
                state = f"{type(err).__name__}: {err}"
            if state != "held" or time.monotonic() > order.latest:
                break
            time.sleep(0.02)
        orders.send((state, time.monotonic() - began))


class Soak:
    """A root with a few frames, two processes and the catalog that they share."""

    def __init__(self, folder: Path, url: str, lease_s: float, seed: int) -> None:
        grid = {**synthetic_domain().grid.model_dump(), "shape": (24, 24)}
        domain = synthetic_domain(model="last_frame", lead_frames=2, grid=grid)
        self.settings = Settings(root=folder / "root", catalog=url, domains={"small": domain})
        self.random = random.Random(seed)
        operations.ingest(self.settings, "small", CYCLES[0] - timedelta(minutes=40), CYCLES[-1], NOW)
        self.store, self.catalog = Store(self.settings.root), Catalog(url)
        self.runners = [_Runner(self.settings, lease_s) for _ in range(2)]
        for runner in self.runners:
            assert runner.pipe.recv()[0] == "ready"
        self.digests: dict[datetime, tuple[str, str]] = {}
        self.one_issue_s = self._measure()

    def close(self) -> None:
        """End the processes."""
        for runner in self.runners:
            runner.close()
        self.catalog.close()

    def race(self, cycle: datetime, summary: Summary) -> bool:
        """Both issue the cycle at once, or nearly so."""
        self._forget(cycle)
        spread = self.random.choice([AT_ONCE_S, 1.2 * self.one_issue_s])
        start = time.monotonic() + LEAD_S
        for runner in self.runners:
            runner.pipe.send(_Order(cycle, start + self.random.uniform(0, spread), 0.0))
        states = [runner.pipe.recv()[0] for runner in self.runners]
        summary.races += 1
        self._judge(cycle, states, summary, f"race {summary.races}", whole=summary.races % 10 == 0)
        return True

    def pause(self, cycle: datetime, summary: Summary) -> bool:
        """One is stopped while it holds the lease, the other takes over, the first goes on.

        Returns:
            False if it had given the lease back before it was stopped: nothing is counted.
        """
        self._forget(cycle)
        stopped, other = self.runners if self.random.random() < 0.5 else self.runners[::-1]
        pid = stopped.process.pid
        assert pid is not None
        stopped.pipe.send(_Order(cycle, 0.0, 0.0))
        while not self._held() and not stopped.pipe.poll():
            pass
        time.sleep(self.random.uniform(0, self.one_issue_s))
        os.kill(pid, signal.SIGSTOP)
        _wait_until_stopped(pid)
        caught = self._held() and not stopped.pipe.poll()
        states = []
        if caught:
            other.pipe.send(_Order(cycle, 0.0, time.monotonic() + TRIES_S))
            # stopped inside a transaction it keeps the other waiting, which then goes on when this one does
            other.pipe.poll(TRIES_S + LEASE_S)
        os.kill(pid, signal.SIGCONT)
        states.append(stopped.pipe.recv()[0])
        if caught:
            states.append(other.pipe.recv()[0])
            summary.pauses += 1
            summary.taken_over += states[1] == "published"
            self._judge(cycle, states, summary, f"pause {summary.pauses}")
        return caught

    def _measure(self) -> float:
        """Seconds of one issue; also the digests that every later product must have."""
        seconds = []
        for cycle in CYCLES:
            self.runners[0].pipe.send(_Order(cycle, 0.0, 0.0))
            state, took = self.runners[0].pipe.recv()
            assert state == "published", state
            seconds.append(took)
            (row,) = self._rows(cycle)
            self.digests[cycle] = row["content_digest"], row["baselines_digest"]
        return sorted(seconds)[len(seconds) // 2]

    def _judge(self, cycle: datetime, states: list[str], summary: Summary, what: str, whole: bool = True) -> None:
        """Compare what is there with what must be; if ``whole`` the digests of files are made again."""
        summary.outcomes[" + ".join(sorted(states))] += 1
        faults = []
        if states.count("published") != 1 or not set(states) <= {"published", "unchanged", "held"}:
            faults.append(f"the processes said {states}")
        product = self.store.product("small", "hindcast", cycle, 1)
        expected = {product, self.store.baselines(product)}
        found = set(product.parent.glob(f"*{times.compact(cycle)}*"))
        if found != expected:
            faults.append(f"files: {sorted(path.name for path in found)}")
        if left := sorted(path.name for path in self.store.temporary.iterdir()):
            faults.append(f"left: {left}")
        rows = self._rows(cycle)
        if len(rows) != 1 or rows[0]["state"] != "published":
            faults.append(f"rows: {[row['state'] for row in rows]}")
        elif found == expected:
            said = rows[0]["content_digest"], rows[0]["baselines_digest"]
            held = tuple(_digest(path, whole) for path in (product, self.store.baselines(product)))
            if not said == held == self.digests[cycle]:
                faults.append(f"digests: the row says {said}, the files hold {held}, {self.digests[cycle]} is right")
        if self._held():
            faults.append("a lease was not given back")
        summary.faults += [f"{what}, {times.iso(cycle)}: {fault}" for fault in faults]

    def _rows(self, cycle: datetime) -> list[tables.Row]:
        c = tables.cycles.c
        return self.catalog.read(sa.select(tables.cycles).where(c.reference_time == times.seconds(cycle)))

    def _held(self) -> bool:
        return bool(self.catalog.read(sa.select(tables.leases.c.name)))

    def _forget(self, cycle: datetime) -> None:
        """As if the cycle had never been issued."""
        product = self.store.product("small", "hindcast", cycle, 1)
        for path in (product, self.store.baselines(product)):
            path.unlink(missing_ok=True)
        with self.catalog.write("small") as connection:
            here = tables.cycles.c.reference_time == times.seconds(cycle)
            connection.execute(sa.delete(tables.cycles).where(here))


def _digest(path: Path, whole: bool) -> str:
    """The digest that a file says; if ``whole``, after making it again from the content."""
    if whole:
        return packing.read_digest(path)
    with h5py.File(path) as file:
        return str(file.attrs["content_digest"])


def _wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def run(races: int, pauses: int, server: postgres_server.PostgresServer | None, seed: int) -> Summary:
    """Races, then pauses, each with processes and a catalog of its own; without a server the catalog is SQLite's."""
    began = time.monotonic()
    summary = Summary("postgresql" if server else "sqlite", seed)
    with tempfile.TemporaryDirectory(prefix="nowcast-soak-") as name:
        for number, (wanted, lease_s) in enumerate(((races, tables.LEASE_S), (pauses, LEASE_S))):
            if not wanted:
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            url = server.new_database() if server else f"sqlite:///{folder / 'catalog.sqlite'}"
            soak = Soak(folder, url, lease_s, seed + number)
            try:
                summary.seconds_of_one_issue = round(soak.one_issue_s, 4)
                done = 0
                while done < wanted:
                    cycle = soak.random.choice(CYCLES)
                    done += (soak.race if number == 0 else soak.pause)(cycle, summary)
                    if done % 50 == 0:
                        print(f"{done} of {wanted}, faults: {len(summary.faults)}", file=sys.stderr)
            finally:
                soak.close()
    summary.seconds = round(time.monotonic() - began, 1)
    return summary


def main() -> int:
    """Print the summary of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--pauses", type=int, default=100)
    parser.add_argument("--catalog", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    with ExitStack() as held:
        server = None
        if wanted.catalog == "postgresql":
            if reason := postgres_server.missing():
                parser.error(reason)
            server = held.enter_context(postgres_server.running())
        summary = run(wanted.races, wanted.pauses, server, wanted.seed)
    print(json.dumps(vars(summary), indent=1))
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Who starts the live process of a soak: a new one takes the place of one that died, or is stopped too long."""

import os
import random
import signal
import time
from collections import Counter
from datetime import datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.settings import Settings
from tests.soak.machines import stand_by
from tests.soak.schedule import Order
from tests.soak.worker import LEASE_S, Answer, work

SPAWN = get_context("spawn")
MACHINES = (1, 2)
# a step with a forecast takes about so long; a process is stopped at some moment of it
STEP_S = 1.5


class Process:
    """A live process on one of the machines."""

    def __init__(self, settings: Settings, folder: Path, machine: int, points: int, now: datetime, seed: int) -> None:
        self.machine = machine
        self.orders, theirs = SPAWN.Pipe()
        arguments = (settings, theirs, points, machine, folder, now, seed)
        self.child = SPAWN.Process(target=work, args=arguments, daemon=True)
        self.child.start()
        theirs.close()

    def answer(self) -> Answer | None:
        """What it says; None if it was killed.

        Raises:
            SystemExit: it ended by itself.
        """
        try:
            return self.orders.recv()
        except (EOFError, ConnectionError):
            self.child.join()
        if self.child.exitcode != -signal.SIGKILL:
            raise SystemExit(f"the live process ended by itself with {self.child.exitcode}")
        return None

    def end(self) -> None:
        """Let it give its lease back."""
        self.orders.send(None)
        self.child.join()


class Supervisor:
    """Two machines, each with a process that stands by; on one of them is the live process.

    Args:
        kills: points at which the processes die, one after the other.

    Attributes:
        died, taken_over: how many processes were killed, and stopped while another one took over.
        last: the newest answer.
    """

    def __init__(self, settings: Settings, folder: Path, kills: list[int], seed: int) -> None:
        self.settings, self.folder, self.kills = settings, folder / "machines", kills
        self.died = self.taken_over = 0
        self.last = Answer(0, 0)
        self.happened, self.waited, self.reported = Counter[str](), Counter[str](), Counter[str]()
        self.unforeseen: list[str] = []
        self._random, self._process = random.Random(seed), None
        self._standing_by = [self._stand_by(machine) for machine in MACHINES]

    def step(self, order: Order) -> Answer:
        """Let the live process do what is due; one that dies is replaced, on either machine."""
        while True:
            process = self._process = self._process or self._begin(order.now, self._random.choice(MACHINES))
            process.orders.send(order)
            answer = process.answer()
            if answer is not None:
                return self._note(answer)
            self.died += 1
            self._process = None

    def take_over(self, order: Order) -> Answer:
        """Stop the live process in its step; the other machine takes over, and then the first one goes on and ends."""
        stopped = self._process
        if stopped is None:
            return self.step(order)
        stopped.orders.send(order)
        time.sleep(self._random.uniform(0, STEP_S))
        os.kill(stopped.child.pid, signal.SIGSTOP)
        self._process = self._begin(order.now, 3 - stopped.machine)
        self._process.orders.send(order)
        # stopped in a transaction of SQLite it keeps the other waiting, which then goes on when this one does
        began = time.monotonic()
        while not self._process.orders.poll(0.1) and time.monotonic() - began < 10 + 3 * LEASE_S:
            pass
        os.kill(stopped.child.pid, signal.SIGCONT)
        if (late := stopped.answer()) is None:
            self.died += 1
        else:
            self._note(late)
            stopped.end()
        self.taken_over += 1
        answer = self._process.answer()
        if answer is not None:
            return self._note(answer)
        self.died, self._process = self.died + 1, None
        return self.step(order)

    def end(self) -> int:
        """End all processes. Returns how many temporaries those that stood by removed."""
        if self._process is not None:
            self._process.end()
        removed = 0
        for child, stop in self._standing_by:
            stop.send(None)
            removed += stop.recv()
            child.join()
        return removed

    def _begin(self, now: datetime, machine: int) -> Process:
        points = self.kills.pop(0) if self.kills else 0
        return Process(self.settings, self.folder, machine, points, now, self._random.randrange(2**31))

    def _stand_by(self, machine: int) -> tuple[SPAWN.Process, Connection]:
        stop, theirs = SPAWN.Pipe()
        child = SPAWN.Process(target=stand_by, args=(self.settings, machine, self.folder, theirs), daemon=True)
        child.start()
        theirs.close()
        return child, stop

    def _note(self, answer: Answer) -> Answer:
        self.last = answer
        self.happened += answer.happened
        self.waited += answer.waited
        self.reported.update(answer.reported)
        self.unforeseen += answer.unforeseen
        return answer

"""The processes that `nowcast up` starts: kept running, their output in bounded files, and ended with their parent."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

LOG_BYTES, LOG_FILES = 10_000_000, 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# a child that ran for so long begins again with a short pause
SOUND_S = 60.0
# carried by every process below ours, whatever group or session it makes for itself; no setting, so not NOWCAST_
MARK = "PART_OF_NOWCAST_UP"
SIGNAL_POLL_S = 0.05


class Child:
    """One process; when it ends it is started again, after a pause that doubles each time.

    Args:
        environment: of the process, with the mark.
        log: file of its output; old output goes to ``NAME.log.1`` and so on.
        once: it has work to do and ends; only a failure starts it again.
        say: told in words what happens.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        say: Callable[[str], None],
        once: bool = False,
    ) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.say, self.once = say, once
        self.done = False
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._pause, self._start_at, self._started = FIRST_PAUSE_S, 0.0, 0.0
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process else None

    def tend(self) -> None:
        """Start it if it is due; notice that it ended. Call about twice a second."""
        if self._process is None:
            if not self.done and time.monotonic() >= self._start_at:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._forget()
        if self.once and code == 0:
            self.done = True
            return
        if time.monotonic() - self._started > SOUND_S:
            self._pause = FIRST_PAUSE_S
        self._start_at = time.monotonic() + self._pause
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = f": {self._last_line}" * bool(self._last_line and code >= 0)
        if code == -signal.SIGKILL:
            how = "killed from outside, or for want of memory"
        self.say(f"{self.name} ended ({how}), starts again in {self._pause:.0f} s{last}; all of it in {self.log}")
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def stop(self, patience_s: float) -> None:
        """Ask it to end (SIGTERM), then make it."""
        self.done = True
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.say(f"{self.name} did not end within {patience_s:.0f} s and is killed")
            self._process.kill()
            self._process.wait()
        self._forget()

    def _start(self) -> None:
        self._started = time.monotonic()
        # a session of its own: Ctrl-C in the terminal reaches us alone, and we end them in order
        self._process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._keep, args=(self._process.stdout,), name=f"log of {self.name}", daemon=True
        )
        self._reader.start()

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.join(1.0)  # what a grandchild that goes on writes is not waited for
        self._process = None

    def _keep(self, output: IO[bytes]) -> None:
        handler = RotatingFileHandler(self.log, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8")
        with output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip()
                self._last_line = text.strip()[:300] or self._last_line
                handler.emit(logging.LogRecord(self.name, logging.INFO, "", 0, "%s", (text,), None))
        handler.close()


def marked(mark: str) -> list[int]:
    """Process ids that carry the mark in their environment; none that belong to others or have just ended."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def end_marked(mark: str, patience_s: float) -> None:
    """End every process with the mark: SIGTERM, and SIGKILL for what is left after the time."""
    _signal(marked(mark), signal.SIGTERM)
    latest = time.monotonic() + patience_s
    while left := marked(mark):
        if time.monotonic() >= latest:
            _signal(left, signal.SIGKILL)
        time.sleep(SIGNAL_POLL_S)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def fork_guard(mark: str, patience_s: float) -> tuple[int, int]:
    """A process that ends everything with the mark when this one is gone, however it went; call before any thread.

    Returns:
        Its id, and a descriptor: the guard acts when the last copy of it is closed, at the latest with this process.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return pid, writing
    try:
        os.close(writing)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.read(reading, 1)
        end_marked(mark, patience_s)
    finally:
        os._exit(0)

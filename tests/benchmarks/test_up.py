"""`nowcast up` as a whole: from nothing to the first forecast, to the schedules, and to nothing again (two minutes)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.children import MARK
from tests.conftest import PROJECT
from tests.flows.test_cli import SMALL


def processes_of(root: Path) -> dict[int, tuple[str, float]]:
    """Processes with the root in their arguments or environment: command and resident MB."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if str(root).encode() in about:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                resident = int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
                found[int(entry.name)] = (command[:110], resident)
        except OSError:
            continue
    return found


class Up:
    """A running `nowcast up`, and what it says."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up", "--config", str(folder / "nowcast.toml")],
            env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said: list[str] = []

    def wait_for(self, text: str) -> float:
        """Seconds from the start until it says ``text``."""
        for line in self.process.stdout:
            self.said.append(line)
            print("   ", line, end="")
            if text in line:
                return time.monotonic() - self.started
        pytest.fail(f"{text!r} was not said: {self.said}")


@pytest.fixture
def environment():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOWCAST_", "PREFECT_"))}
    return clean | {"PYTHONPATH": str(PROJECT), "NOWCAST_PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}


def test_from_nothing_to_a_forecast_and_back(tmp_path, environment):
    (tmp_path / "nowcast.toml").write_text(SMALL.replace("minutes = 10", "minutes = 5"))
    root = tmp_path / "data"
    print()
    first = Up(tmp_path, environment)
    print(f"  first forecast {first.wait_for('first forecast published'):.0f} s")
    print(f"  schedules      {first.wait_for('schedules are set'):.0f} s")
    for command, resident in processes_of(root).values():
        print(f"  {resident:5.0f} MB  {command}")
    stopping = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(25) == 0
    print(f"  stopped in     {time.monotonic() - stopping:.1f} s")
    assert time.monotonic() - stopping < 20
    assert processes_of(root) == {}

    again = Up(tmp_path, environment)
    print(f"  restart: server {again.wait_for('Prefect shows flows'):.0f} s")
    assert len(processes_of(root)) >= 2
    again.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    while left := processes_of(root):
        assert time.monotonic() - killed < 25, left
        time.sleep(0.1)
    print(f"  after SIGKILL all ended in {time.monotonic() - killed:.1f} s")
    assert MARK not in os.environ

"""`nowcast up`: what it refuses, and that it leaves nothing behind. The whole of it runs in tests/benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from flows.children import MARK, Child, end_marked, marked
from tests.conftest import PROJECT
from tests.flows.test_cli import SMALL, nowcast


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowcast.toml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def mark(tmp_path):
    """A mark of this test; whatever carries it is gone afterwards."""
    name = f"{tmp_path}:{os.getpid()}"
    yield name
    end_marked(name, 0)


def up(**environment: str):
    done = nowcast("up", **environment)
    return done.exit_code, done.output.replace("\n", "")


@pytest.mark.parametrize(
    ("variable", "value", "code", "said"),
    [
        ("NOWCAST_PREFECT_API_URL", "http://192.0.2.1:4200/api", 2, "for this machine only"),
        ("NOWCAST_PREFECT_API_URL", "http://0.0.0.0:4200/api", 2, "for this machine only"),
        ("NOWCAST_PREFECT_API_URL", "https://127.0.0.1:4200", 2, "expected http://HOST:PORT/api"),
        ("NOWCAST_ROOT", "/proc/nowcast", 4, "/proc/nowcast cannot be used"),
        ("NOWCAST_CATALOG", "postgresql+psycopg://u:hush@127.0.0.1:9/x", 4, "cannot be used"),
        ("NOWCAST_CONFIG", "missing.toml", 2, "missing.toml"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(here, variable, value, code, said):
    exit_code, output = up(**{variable: value})
    assert exit_code == code and said in output and "hush" not in output
    assert not (here / "data" / "logs").exists()


def test_no_domains_are_refused(here):
    (here / "nowcast.toml").write_text("")
    assert "no domain is configured" in up()[1]


def test_a_port_in_use_is_refused(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = up(NOWCAST_PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    assert code == 4 and f"port {port}" in output and "NOWCAST_PREFECT_API_URL" in output


def test_a_second_one_is_refused_and_names_the_first(here):
    from pathlib import Path

    from flows.up import _only_one

    (here / "data").mkdir()
    with _only_one(Path(here / "data"), print):
        code, output = up()
    assert code == 3 and f"as process {os.getpid()}" in output


def wait_for(condition, seconds: float = 15.0):
    latest = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < latest, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_a_child_that_ends_is_started_again_later_each_time(tmp_path, mark):
    said = []
    command = [sys.executable, "-c", "print('no luck'); raise SystemExit(7)"]
    child = Child("breaks", command, {MARK: mark}, tmp_path / "log", said.append)

    def ended_twice():
        child.tend()
        return len(said) == 2

    wait_for(ended_twice)
    child.stop(1)
    assert "exit code 7" in said[0] and "again in 1 s: no luck" in said[0] and "again in 2 s" in said[1]
    assert (tmp_path / "log").read_text() == "no luck\nno luck\n"
    child.tend()
    assert child.pid is None, "one that was stopped does not begin again"


# a child that ignores SIGTERM, and one of its own that has a session of its own, as runs of a Prefect worker have
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""
PARENT = """
import sys, time
from pathlib import Path
from flows.children import MARK, Child, fork_guard
mark, log = sys.argv[1:3]
fork_guard(mark, 0.5)
child = Child("stubborn", [sys.executable, "-c", sys.argv[3]], {MARK: mark}, Path(log), print)
while True:
    child.tend()
    time.sleep(0.1)
"""


def test_when_the_parent_is_killed_everything_below_it_ends(tmp_path, mark):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), mark, str(tmp_path / "log"), STUBBORN],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    try:
        wait_for(lambda: len(marked(mark)) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not marked(mark), 5)


def test_a_log_is_bounded(tmp_path, mark, monkeypatch):
    monkeypatch.setattr("flows.children.LOG_BYTES", 1000)
    command = [sys.executable, "-c", "for n in range(500): print('line', n)"]
    child = Child("talks", command, {MARK: mark}, tmp_path / "log", print, once=True)

    def is_done():
        child.tend()
        return child.done

    wait_for(is_done)
    files = sorted(tmp_path.glob("log*"))
    assert len(files) == 4 and sum(file.stat().st_size for file in files) < 5000
    assert (tmp_path / "log").read_text().endswith("line 499\n")

"""Start-up of the command line, as a whole process; and a bare run against one through a running Prefect server.

python -m pytest tests/benchmarks/test_start_up.py -s
"""

import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import PROJECT
from tests.flows.test_cli import SMALL

RUNS = 5


def seconds(line: str, cwd, **environment) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *shlex.split(line)],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started


@pytest.fixture
def here(tmp_path):
    (tmp_path / "nowcast.toml").write_text(SMALL)
    return tmp_path


def test_light_commands(here):
    print()
    for line in ("--help", "--version", "config show", "status", "networks list"):
        times = [seconds(line, here) for _ in range(RUNS)]
        print(f"  nowcast {line:14} median {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


def test_bare_run_against_one_through_a_server(here):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(here / "prefect"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    prefect = os.path.join(os.path.dirname(sys.executable), "prefect")
    server = subprocess.Popen(
        [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{api}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.5)
        bare, through = [], []
        for n in range(RUNS):
            for kind, url in ((bare, "http://127.0.0.1:9/api"), (through, api)):
                root = here / f"{n}-{len(bare)}-{len(through)}"
                line = f"run small --reference-time 2024-06-01T02:00Z --set root={root}"
                kind.append(seconds(line, here, NOWCAST_PREFECT_API_URL=url))
        a, b = statistics.median(bare), statistics.median(through)
        print(f"\n  nowcast run: bare {a:.2f} s, through a server {b:.2f} s, {b - a:.2f} s more")
    finally:
        server.terminate()
        server.wait()

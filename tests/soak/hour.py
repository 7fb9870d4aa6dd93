"""An hour through the real thing: ``python -m tests.soak.hour --minutes 60 --seed 1``.

``nowcast up`` with its Prefect server, schedules, worker and live process, on two feeds under the faults of the
simulated day, at the speed of the wall clock. Processes are killed and stopped at times drawn from the seed.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from pipeline import operations, times
from pipeline.catalog import Catalog
from pipeline.settings import load
from tests.simulation import Script
from tests.soak.checks import check_root, cycles, equal_where_inputs_are
from tests.soak.faults import script_of_faults
from tests.soak.feeds import GRID, PATTERN, generate, settings_of

# per hour: SIGKILL of the live process and of Prefect's server, and a pause of the live process beyond its lease
EVENTS = {"kill live": 4, "kill server": 2, "pause live": 1}
WORDS = {"live": "flows.cli live", "server": "prefect --no-prompt server start"}
PAUSE_S = 45


def write_config(folder: Path, port: int) -> Path:
    """Settings of the two domains as a file."""
    grid = f'{{ crs = "{GRID["crs"]}", shape = {list(GRID["shape"])}, spacing_m = 2000.0, centre = [5.0, 51.0] }}'
    text = f"""
root = "faulty"
prefect_api_url = "http://127.0.0.1:{port}/api"
alerts.free_gb = 0.1
"""
    sources = {
        "composites": ('kind = "gridded"\nreader = "odim_comp"', "{ native = true }"),
        "radars": (f'kind = "volumes"\npattern = \'{PATTERN}\'\ntime_format = "%Y%m%dT%H%M%SZ"', grid),
    }
    for name, (source, grid_of) in sources.items():
        text += f"""
[domains.{name}]
cadence_minutes = 6
lead_frames = 10
lateness = {{ deadline_s = 240, grace_s = 1500 }}
grid = {grid_of}
[domains.{name}.source]
{source}
uri = "feed-faulty/{name}"
"""
    path = folder / "nowcast.toml"
    path.write_text(text)
    return path


def children(root: Path, words: str) -> list[int]:
    """Processes of the root whose command has the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if words in command and str(root).encode() in environment + command.encode():
            found.append(int(path.name))
    return found


def soak(folder: Path, seed: int, minutes: float) -> dict:
    """Run it, then check the root as after a simulated day."""
    rng = np.random.default_rng(seed)
    start = datetime.now(UTC)
    end = start + timedelta(minutes=minutes)
    files = generate(folder, [(start - timedelta(minutes=60), end)])
    script, happened = Script(), Counter()
    for name, of_feed in files.items():
        for root in ("faulty", "clean"):
            (folder / f"feed-{root}" / name).mkdir(parents=True)
        happened += script_of_faults(script, folder / "feed-faulty" / name, of_feed, int(rng.integers(2**31)))
        for file, _, content in of_feed:
            (folder / "feed-clean" / name / file).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = write_config(folder, port)
    log = (folder / "up.log").open("w")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    up = subprocess.Popen([sys.executable, "-m", "flows.cli", "up", "--config", str(config)], stdout=log, stderr=log,
                          env=environment)  # fmt: skip
    done: Counter[str] = Counter()

    def event(kind: str):
        def act(now: datetime) -> None:
            what, which = kind.split()
            for pid in children(folder, WORDS[which]):
                done[kind] += 1
                if what == "kill":
                    os.kill(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(PAUSE_S)
                    os.kill(pid, signal.SIGCONT)

        return act

    began = datetime.now(UTC)
    for kind, count in EVENTS.items():
        for share in rng.uniform(0.1, 0.9, max(1, round(count * minutes / 60))):
            script.at(began + float(share) * (end - began), event(kind))
    memory = {}
    while datetime.now(UTC) < end:
        now = datetime.now(UTC)
        script.happen(now)
        assert up.poll() is None, f"nowcast up ended with {up.returncode}: {(folder / 'up.log').read_text()[-2000:]}"
        for pid in children(folder, WORDS["live"]):
            pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
            memory[round((now - start).total_seconds() / 60)] = int(pages) * os.sysconf("SC_PAGE_SIZE") >> 20
        time.sleep(1)
    up.send_signal(signal.SIGTERM)
    code = up.wait(60)
    assert code == 0, f"nowcast up ended with {code}"
    left = children(folder, "flows") + children(folder, "prefect")
    assert not left, f"processes are left: {left}"
    settings = load(config)
    summary = {
        "seed": seed,
        "minutes": minutes,
        "files": dict(happened),
        "events": dict(done),
        "memory_mb": {minute: memory[minute] for minute in sorted(memory)[::10]},
    }
    clean = settings_of(folder, "clean")
    for name, domain in settings.domains.items():
        rows = cycles(Catalog(settings.catalog), name)
        first = times.first_slot(began, domain.cadence)
        last = end - timedelta(seconds=domain.lateness.grace_s + 120)
        summary[name] = check_root(settings, name, min(first, last), last)
        summary[name]["rows"] = len(rows)
        operations.backfill(clean, name, first - timedelta(minutes=30), end, datetime.now(UTC))
        summary[name]["equal_to_backfill"] = equal_where_inputs_are(settings, clean, name)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        summary = soak(folder, arguments.seed, arguments.minutes)
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

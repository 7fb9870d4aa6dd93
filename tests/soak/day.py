"""A simulated day of two domains under faults: ``python -m tests.soak.day --seed 1 --hours 24``.

Every failure can be played again from its seed: the fault of each file and the point at which the process is killed are
drawn from it. What must hold is checked in the end; the summary is one JSON document.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import boto3
import numpy as np

from pipeline import operations
from pipeline.domain import Domain
from pipeline.settings import Settings
from pipeline.source_settings import S3Access
from tests.s3_server import FaultyProxy, dropped, refusal, running_server
from tests.simulation import Script
from tests.soak.checks import check_root, equal_where_inputs_are
from tests.soak.faults import received, script_of_faults
from tests.soak.worker import work

START = datetime(2024, 6, 1, 0, 3, tzinfo=UTC)
EVERY = timedelta(seconds=30)
GRID = {"crs": "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs", "shape": (64, 64), "spacing_m": 2000.0,
        "centre": (5.0, 51.0)}  # fmt: skip
RADARS = {"east": {"longitude": 5.4, "latitude": 50.9, "altitude_m": 120.0},
          "west": {"longitude": 4.6, "latitude": 51.1, "altitude_m": 50.0}}  # fmt: skip
PATTERN = r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5"
GENERATORS = {
    "composites": {"kind": "synthetic", "seed": 21, "event_hours": 6},
    "radars": {"kind": "synthetic_radars", "seed": 22, "event_hours": 6, "radars": RADARS},
}


def domains(folder: Path) -> dict[str, Domain]:
    """The two domains, reading from folders below ``folder``."""
    common = {"cadence_minutes": 6, "lead_frames": 10, "lateness": {"deadline_s": 240, "grace_s": 1500}}
    sources = {
        "composites": {"kind": "gridded", "reader": "odim_comp", "uri": str(folder / "composites")},
        "radars": {
            "kind": "volumes",
            "pattern": PATTERN,
            "time_format": "%Y%m%dT%H%M%SZ",
            "uri": str(folder / "radars"),
        },
    }
    grids = {"composites": {"native": True}, "radars": GRID}
    return {
        name: Domain.model_validate({**common, "name": name, "grid": grids[name], "source": source})
        for name, source in sources.items()
    }


def settings_of(folder: Path, root: str) -> Settings:
    """Settings of a root below ``folder``."""
    path = folder / root
    return Settings(root=path, catalog=f"sqlite:///{path / 'catalog.sqlite'}", domains=domains(folder / f"feed-{root}"))


def generate(folder: Path, start: datetime, end: datetime) -> dict[str, list[tuple[str, datetime, bytes]]]:
    """What both feeds would bring if nothing went wrong."""
    made = folder / "made"
    made.mkdir()
    found = {}
    for name, source in GENERATORS.items():
        domain = Domain.model_validate({"cadence_minutes": 6, "name": name, "grid": GRID, "source": source})
        found[name] = received(domain, start, end, made)
    return found


class Worker:
    """The live process; a new one takes the place of one that died."""

    def __init__(self, settings: Settings, kills: list[int]) -> None:
        self.settings, self.kills, self.died, self.points = settings, kills, 0, 0
        self._process, self._orders = None, None

    def step(self, now: datetime) -> int:
        """Let it do what is due; returns its resident memory."""
        while True:
            if self._process is None:
                self._begin(now)
            try:
                self._orders.send(now)
                memory, self.points = self._orders.recv()
                return memory
            except (EOFError, ConnectionError):
                self._process.join()
                if self._process.exitcode != -9:
                    raise SystemExit(
                        f"the live process ended by itself with {self._process.exitcode} at {now}"
                    ) from None
                self.died += 1
                self._process = None

    def end(self) -> None:
        self._orders.send(None)
        self._process.join()

    def _begin(self, now: datetime) -> None:
        context = get_context("spawn")
        self._orders, theirs = context.Pipe()
        points = self.kills.pop(0) if self.kills else 0
        self._process = context.Process(target=work, args=(self.settings, now, theirs, points), daemon=True)
        self._process.start()
        theirs.close()


@contextlib.contextmanager
def failing_bucket(seed: int, share: float = 0.05):
    """Settings of a store in a bucket whose server fails that share of the calls: errors, and connections that end."""
    rng = random.Random(seed)
    failures = (refusal("InternalError", 500), refusal("SlowDown", 503), dropped)

    def choose(method: str, path: str):
        return rng.choice(failures) if rng.random() < share else "pass"

    with running_server() as endpoint, contextlib.closing(FaultyProxy(endpoint)) as proxy:
        os.environ.update(AWS_ACCESS_KEY_ID="soak", AWS_SECRET_ACCESS_KEY="soak")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="soak")
        proxy.choose = choose
        access = S3Access(endpoint_url=proxy.endpoint, timeout_s=5)
        yield {"store": "s3://soak/root", "s3": access}, proxy


def soak(folder: Path, seed: int, hours: float, kills: int, s3: bool = False) -> dict:
    """Run a day under faults, a day without, and compare.

    Args:
        s3: the store is a bucket whose server fails 5 % of the calls.
    """
    with failing_bucket(seed) if s3 else contextlib.nullcontext(({}, None)) as (changes, proxy):
        settings = settings_of(folder, "faulty").model_copy(update=changes)
        summary = _soak(settings, folder, seed, hours, kills)
        if proxy is not None:
            summary["s3_calls"] = len(proxy.seen)
        return summary


def _soak(settings: Settings, folder: Path, seed: int, hours: float, kills: int) -> dict:
    rng = np.random.default_rng(seed)
    end = START + timedelta(hours=hours)
    files = generate(folder, START - timedelta(minutes=40), end)
    script, happened = Script(), Counter()
    for name, of_feed in files.items():
        for root in ("faulty", "clean"):
            (folder / f"feed-{root}" / name).mkdir(parents=True)
        happened += script_of_faults(script, folder / "feed-faulty" / name, of_feed, int(rng.integers(2**31)))
        for file, _, content in of_feed:
            (folder / "feed-clean" / name / file).write_bytes(content)
    # a process passes some 2500 points an hour
    most = np.log10(max(200.0, 6000 * hours / max(kills, 1)))
    worker = Worker(settings, [int(n) for n in 10 ** rng.uniform(1.5, most, kills)])
    started, memory, now = time.perf_counter(), {}, START
    while now <= end + timedelta(seconds=1600):
        script.happen(now)
        memory[round((now - START).total_seconds() / 3600, 3)] = worker.step(now)
        now += EVERY
    worker.end()
    seconds = time.perf_counter() - started
    summary = {
        "seed": seed,
        "simulated_hours": round((now - START).total_seconds() / 3600, 2),
        "seconds": round(seconds, 1),
        "speed_up": round((now - START).total_seconds() / seconds),
        "files": dict(happened),
        "killed": worker.died,
        "points_of_the_last_process": worker.points,
        "memory_mb": {
            hour: resident_mb(memory, hour) for hour in (1, 2, 3, 4, 5, 6, 9, 12, 15, 18, 21, 24) if hour < hours + 0.1
        },
    }
    for name in settings.domains:
        summary[name] = check_root(settings, name, START, end)
        clean = settings_of(folder, "clean")
        operations.backfill(clean, name, START, end, now)
        summary[name]["equal_to_backfill"] = equal_where_inputs_are(settings, clean, name)
    equal = sum(summary[name]["equal_to_backfill"]["equal"] for name in settings.domains)
    assert equal, "no forecast had the input of the day without faults"
    return summary


def resident_mb(memory: dict[float, int], hour: float) -> int:
    """Median of the half hour before, since one look may meet a forecast in the making."""
    return round(np.median([size for at, size in memory.items() if hour - 0.5 < at <= hour]) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--s3", action="store_true", help="the store is a bucket that fails 5 %% of the calls")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        summary = soak(folder, arguments.seed, arguments.hours, arguments.kills, arguments.s3)
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

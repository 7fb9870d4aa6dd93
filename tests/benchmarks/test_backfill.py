"""Backfills: what a cycle costs as the period grows, and that workers and kills change nothing.

``python -m pytest tests/benchmarks/test_backfill.py -s``.
"""

import os
import random
import signal
import subprocess
import sys
import time

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline.catalog import Catalog
from tests.conftest import PROJECT

SMALL = """
root = "{root}"
[domains.small]
cadence_minutes = 5
lead_frames = 12
grid = {{ crs = "EPSG:3035", shape = [64, 64], spacing_m = 2000, centre = [5.4, 51.1] }}
source = {{ kind = "synthetic", seed = 1 }}
"""
# Brisbane, twenty-four cycles of a wet night
PERIOD = ("2020-10-31T02:00Z", "2020-10-31T05:50Z")


def backfill(config, domain, start, end, *options, root=None):
    command = [sys.executable, "-m", "flows.cli", "backfill", domain, "--config", str(config)]
    command += ["--from", start, "--to", end]
    if root is not None:
        command += ["--set", f"root={root}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOWCAST_PREFECT_API_URL": "http://127.0.0.1:9/api"}
    return subprocess.Popen([*command, *options], cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


def digests(root):
    rows = Catalog(f"sqlite:///{root / 'catalog.sqlite'}").read(sa.select(tables.cycles))
    return {row["reference_time"]: (row["state"], row["content_digest"], row["baselines_digest"]) for row in rows}


def test_cost_of_a_cycle_and_memory_as_the_period_grows(tmp_path):
    for cycles in (50, 200, 1000):
        config = tmp_path / f"{cycles}.toml"
        config.write_text(SMALL.format(root=tmp_path / str(cycles)))
        hours, minutes = divmod((cycles - 1) * 5, 60)
        end = f"2024-06-{1 + hours // 24:02}T{hours % 24:02}:{minutes:02}Z"
        started = time.perf_counter()
        process = backfill(config, "small", "2024-06-01T00:00Z", end)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        assert status == 0 and len(digests(tmp_path / str(cycles))) == cycles
        cpu = usage.ru_utime + usage.ru_stime
        each, peak = 1000 * cpu / cycles, usage.ru_maxrss / 1024
        print(
            f"\n{cycles:5} cycles: {seconds:.1f} s, {cpu:.1f} s of CPU, {each:.1f} ms of CPU each, peak {peak:.0f} MB"
        )


def test_workers_dask_and_kills_give_the_same_forecasts(tmp_path, sample_data):
    config = PROJECT / "infra/domains/brisbane.toml"
    ways = {"one": (), "two": ("--workers", "2"), "dask": ("--dask", "local", "--workers", "2")}
    found = {}
    for way, options in ways.items():
        started = time.perf_counter()
        assert backfill(config, "brisbane", *PERIOD, *options, root=tmp_path / way).wait() in (0, 3)
        found[way] = digests(tmp_path / way)
        print(f"\nBrisbane, 24 cycles, {way}: {time.perf_counter() - started:.1f} s")
    rng, killed = random.Random(1), 0
    for _ in range(3):
        process = backfill(config, "brisbane", *PERIOD, "--workers", "2", root=tmp_path / "killed")
        try:
            process.wait(rng.uniform(8, 20))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert backfill(config, "brisbane", *PERIOD, root=tmp_path / "killed").wait() in (0, 3)
    found["killed"] = digests(tmp_path / "killed")
    print(f"killed {killed} times")
    assert len(found["one"]) == 24 and all(of == found["one"] for of in found.values())

"""From the last sweep on disk to the published file: latency by stage, and 160 domains in one cycle.

``python -m pytest tests/benchmarks/test_live.py -s``. The clock of the live process is set to a minute after each
instant and then runs as the wall clock does; everything else is as in operation.
"""

import json
import os
import resource
import shutil
import statistics
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.domain import Domain
from pipeline.intake import InProcesses, OnTheSpot
from pipeline.live import Live
from pipeline.sources.synthetic_radars import RadarNetwork
from tests.conftest import settings_for

T0 = datetime(2024, 6, 1, 3, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
SITE = {"radar": {"longitude": 5.0, "latitude": 51.0, "altitude_m": 50.0}}
PATTERN = r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5"
CYCLES = 12


def domain(name, folder, side, spacing_m) -> Domain:
    grid = {"crs": "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs", "shape": (side, side),
            "spacing_m": spacing_m, "centre": (5.0, 51.0)}  # fmt: skip
    source = {"kind": "volumes", "uri": str(folder), "pattern": PATTERN, "time_format": "%Y%m%dT%H%M%SZ"}
    return Domain.model_validate(
        {"name": name, "cadence_minutes": 10, "lead_frames": 12, "grid": grid, "source": source}
    )


def volumes(folder, count, side=256, spacing_m=2000.0):
    """Files of one radar, oldest first; the rain is that of a coarser grid, which the beams do not tell."""
    made = domain("made", folder, side, spacing_m).model_dump()
    source = {"kind": "synthetic_radars", "seed": 21, "radars": SITE}
    network = RadarNetwork(*(lambda d: (d.source, d))(Domain.model_validate({**made, "source": source})))
    paths = []
    for ref in network.list(T0 - 5 * STEP, T0 + (count - 6) * STEP):
        network.write(folder / ref.key, ref.radar, ref.nominal_time)
        paths.append(folder / ref.key)
    return paths


class ShiftedClock(times.Clock):
    """The wall clock, set to another time."""

    def set(self, time_shown):
        object.__setattr__(self, "shift", time_shown - datetime.now(UTC))

    def now(self):
        return datetime.now(UTC) + self.shift


def measure(tmp_path, files, count):
    names = [f"d{n}" for n in range(count)]
    for name in names:
        (tmp_path / name).mkdir()
    settings = settings_for(tmp_path / "root", *(domain(name, tmp_path / name, 512, 1000.0) for name in names))
    store, catalog = operations.open_root(settings)
    clock = ShiftedClock(T0)
    clock.set(T0 - STEP)
    intake, found, published = InProcesses(settings), [], []
    live = Live(settings, store, catalog, clock, intake, after=lambda outcomes: published.extend(outcomes))
    history, coming = files[:5], files[5 : 5 + CYCLES]
    for file in history:
        for name in names:
            shutil.copyfile(file, tmp_path / name / file.name)
    for n, file in enumerate(coming):
        instant = T0 + n * STEP
        clock.set(instant + timedelta(seconds=60))
        if n == 0:  # the history goes in first, so that the first cycle is cold but not a backlog
            until = time.monotonic() + 120
            while len(catalog.read(sa.select(tables.frames))) < 5 * count and time.monotonic() < until:
                time.sleep(live.step())
            published.clear()
        started = time.time()
        for name in names:
            part = tmp_path / name / f".{file.name}"
            shutil.copyfile(file, part)
            os.rename(part, tmp_path / name / file.name)
        wanted = {(name, instant) for name in names}
        seen = {}
        while len(seen) < count:
            assert time.time() - started < 300, "no forecast in five minutes"
            wait = live.step()
            for outcome in published:
                if (outcome.domain, outcome.reference_time) in wanted:
                    seen.setdefault(outcome.domain, outcome)
            time.sleep(wait)
        for name in names:
            rows = catalog.read(
                sa.select(tables.cycles, tables.frames.c.framed_at)
                .join(tables.frames, sa.and_(tables.frames.c.domain == tables.cycles.c.domain,
                                             tables.frames.c.valid_time == tables.cycles.c.reference_time))
                .where(tables.cycles.c.domain == name, tables.cycles.c.reference_time == times.seconds(instant))
            )  # fmt: skip
            (row,) = [row for row in rows if row["revision"] == 1]
            stages = json.loads(row["stages"])
            shown = started + clock.shift.total_seconds()
            found.append(
                {
                    "cycle": n,
                    "frame": row["framed_at"] - shown,
                    "read": stages["read"],
                    "forecast": stages["forecast"],
                    "write": stages["write"],
                    "total": row["issue_time"] + stages["write"] - shown,
                }
            )
    intake.close()
    return found


def show(title, rows):
    print(f"\n{title}: {len(rows)} forecasts, seconds")
    for key in ("frame", "read", "forecast", "write", "total"):
        values = [row[key] for row in rows]
        print(f"  {key:9} median {statistics.median(values):6.2f}   p95 {np.quantile(values, 0.95):6.2f}")


def test_latency(tmp_path):
    (tmp_path / "files").mkdir()
    files = volumes(tmp_path / "files", CYCLES + 5)
    for count in (1, 8):
        folder = tmp_path / str(count)
        folder.mkdir()
        found = measure(folder, files, count)
        show(f"{count} domain(s) of 512 x 512, 12 leads, cold (first cycle)", [r for r in found if r["cycle"] == 0])
        show(f"{count} domain(s) of 512 x 512, 12 leads, warm", [r for r in found if r["cycle"] > 0])
    assert found


def test_160_domains_in_one_cycle(tmp_path):
    """The design case, on 240 x 240 cells of 2 km; the frames before the last are copied from the first domain."""
    (tmp_path / "files").mkdir()
    files = volumes(tmp_path / "files", 6)
    names = [f"d{n:03}" for n in range(160)]
    for name in names:
        (tmp_path / name).mkdir()
    settings = settings_for(tmp_path / "root", *(domain(name, tmp_path / name, 240, 2000.0) for name in names))
    store, catalog = operations.open_root(settings)
    for file in files[:5]:
        shutil.copyfile(file, tmp_path / names[0] / file.name)
    operations.ingest(settings, names[0], None, None, T0)
    rows = {table: catalog.read(sa.select(table)) for table in (tables.frames, tables.volumes)}
    for name in names[1:]:
        shutil.copytree(store.archive(names[0]), store.archive(name))
        for file in files[:5]:
            os.link(tmp_path / names[0] / file.name, tmp_path / name / file.name)
        with catalog.write(name) as connection:
            for table, of_first in rows.items():
                catalog.upsert(connection, table, [row | {"domain": name} for row in of_first])
    for name in names:
        shutil.copyfile(files[5], tmp_path / name / files[5].name)
    clock, timed = times.Clock(T0 + timedelta(seconds=90)), {}
    live = Live(settings, store, catalog, clock, OnTheSpot(store, catalog))
    started = time.perf_counter()
    for feed in live.feeds:
        live._poll(feed, clock.now())
    for polled in live.intake.finished():
        assert polled.result is not None, polled.fault
        live._note(polled)
    timed["ingest, one process"] = time.perf_counter() - started
    started = time.perf_counter()
    facts = live._facts(clock.now())
    due = [w for f in live.feeds for w in live._guarded(f, *(part[f.domain.name] for part in facts), clock.now())]
    timed["decide"] = time.perf_counter() - started
    started = time.perf_counter()
    outcomes = live._issue_batch(due)
    timed["batch"] = time.perf_counter() - started
    assert {o.state for o in outcomes} == {"published"} and len(outcomes) == 160
    for stage in ("read", "forecast", "write"):
        timed[f"  of it {stage}"] = sum(o.stages[stage] for o in outcomes)
    print("\n160 domains of 240 x 240, 12 leads, one cycle, one process on a CPU, seconds")
    for stage, seconds in timed.items():
        print(f"  {stage:22} {seconds:7.2f}   {1000 * seconds / 160:7.1f} ms a domain")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")

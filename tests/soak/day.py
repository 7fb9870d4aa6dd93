"""A simulated day of two domains under faults: ``python -m tests.soak.day --seed 1 --hours 24 --catalog sqlite``.

Files come late, damaged or never; processes are killed, or stopped beyond their lease while another machine takes over;
calls of the system fail, methods raise, the clock is wrong, and in the middle nobody is at work for three days. All is
drawn from the seed; threads and the machine decide how it falls out in detail. What must hold is checked in the end.
The summary is one JSON document.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np

from pipeline import operations
from pipeline.catalog import Catalog
from pipeline.cycles import end_with_parent
from pipeline.settings import Settings
from pipeline.storage import open_store
from tests import postgres_server
from tests.simulation import Script
from tests.soak.bucket import failing_bucket
from tests.soak.checks import check_root, cycles, equal_where_inputs_are
from tests.soak.faults import Flips, script_of_faults
from tests.soak.feeds import generate, settings_of
from tests.soak.healthy import check_quarantine, check_reasons, overlooked
from tests.soak.schedule import Schedule
from tests.soak.supervisor import Supervisor

START = datetime(2024, 6, 1, 0, 3, tzinfo=UTC)
EVERY = timedelta(seconds=30)
# files come so long before there is work
BEFORE = timedelta(minutes=40)


def soak(
    folder: Path,
    seed: int,
    hours: float,
    kills: int,
    s3: bool = False,
    catalog: str = "sqlite",
    pause_days: float = 3.0,
) -> dict:
    """Run some hours under faults, with a pause in their middle, as many without, and compare.

    Args:
        s3: the store is a bucket whose server fails 5 % of the calls, and takes ten seconds for some.
        catalog: sqlite or postgresql.
        pause_days: so long nobody is at work.
    """
    with contextlib.ExitStack() as held:
        changes, calls = held.enter_context(failing_bucket(seed)) if s3 else ({}, {})
        if catalog == "postgresql":
            changes["catalog"] = held.enter_context(postgres_server.running()).new_database()
        settings = settings_of(folder, "faulty").model_copy(update=changes)
        plan = Plan(START, hours, timedelta(days=pause_days))
        summary = {"seed": seed, "catalog": catalog, **_soak(settings, folder, plan, seed, kills)}
        return summary | {f"s3_{name}": count for name, count in calls.items()}


@dataclass(frozen=True)
class Plan:
    """Half of the hours, a pause, the other half."""

    start: datetime
    hours: float
    pause: timedelta

    @property
    def work(self) -> list[tuple[datetime, datetime]]:
        """Periods in which the live process is at work."""
        half = timedelta(hours=self.hours / 2)
        again = self.start + half + self.pause
        return [(self.start, self.start + half), (again, again + half)]

    @property
    def end(self) -> datetime:
        """Of the last period."""
        return self.work[-1][1]

    def of_feed(self) -> list[tuple[datetime, datetime]]:
        """Periods in which files come: those of work, from a while before, and half an hour a day of the pause."""
        days = [self.work[0][1] + (n + 0.5) * timedelta(days=1) for n in range(round(self.pause / timedelta(days=1)))]
        before = [(start - BEFORE, end) for start, end in self.work]
        return [before[0], *((day, day + timedelta(minutes=30)) for day in days), *before[1:]]


def _soak(settings: Settings, folder: Path, plan: Plan, seed: int, kills: int) -> dict:
    rng = np.random.default_rng(seed)
    files = generate(folder, plan.of_feed())
    script, happened = Script(), Counter()
    for name, of_feed in files.items():
        for root in ("faulty", "clean"):
            (folder / f"feed-{root}" / name).mkdir(parents=True)
        happened += script_of_faults(script, folder / "feed-faulty" / name, of_feed, int(rng.integers(2**31)))
        for file, _, content in of_feed:
            (folder / "feed-clean" / name / file).write_bytes(content)
    after = plan.end + timedelta(seconds=1600)
    clean = settings_of(folder, "clean")
    backfill = get_context("spawn").Process(target=backfill_clean, args=(clean, plan, after), daemon=True)
    backfill.start()
    # a process passes some 2500 points an hour
    most = np.log10(max(200.0, 6000 * plan.hours / max(kills, 1)))
    points = [int(n) for n in 10 ** rng.uniform(1.5, most, kills)]
    schedule = Schedule(plan.work, timedelta(minutes=6), int(rng.integers(2**31)))
    flips = Flips(settings)
    if not settings.store:
        for time in schedule.flips:
            script.at(time, flips.flip)
    supervisor = Supervisor(settings, folder, points, int(rng.integers(2**31)))
    started, memory, steps = perf_counter(), {}, 0
    for period in plan.work:
        now, until = period[0], period[1] if period != plan.work[-1] else after
        while now <= until:
            script.happen(now)
            order = schedule.order(now)
            taken_over = bool(schedule.takeovers) and schedule.takeovers[0] <= now
            if taken_over:
                schedule.takeovers.pop(0)
            answer = supervisor.take_over(order) if taken_over else supervisor.step(order)
            memory[round((now - plan.start).total_seconds() / 3600, 3)] = answer.memory
            now, steps = now + EVERY, steps + 1
    cleaned = supervisor.end()
    seconds = perf_counter() - started
    backfill.join()
    assert backfill.exitcode == 0, "the backfill without faults failed"
    summary = {
        "worked_hours": round(steps * EVERY / timedelta(hours=1), 2),
        "paused_hours": round(plan.pause / timedelta(hours=1), 2),
        "seconds": round(seconds, 1),
        "files": dict(happened),
        "bursts": schedule.counts(),
        "failed_calls": dict(supervisor.happened),
        "frames_turned_over": flips.count,
        "killed": supervisor.died,
        "taken_over": supervisor.taken_over,
        "temporaries_cleaned_up": cleaned,
        "waited": dict(supervisor.waited),
        "reported": len(supervisor.reported),
        "points_of_the_last_process": supervisor.last.points,
        "memory_mb": memory_mb(memory),
    }
    sys.stderr.write(json.dumps(summary, indent=2) + "\n")  # also if a check fails
    assert not supervisor.unforeseen, "\n".join(
        [f"{len(supervisor.unforeseen)} unforeseen", *supervisor.unforeseen[:3]]
    )
    catalog, store = Catalog(settings.catalog), open_store(settings)
    for name in settings.domains:
        summary[name] = check_root(settings, name, plan.start, plan.end)
        check_reasons(cycles(catalog, name), supervisor.reported)
        feed, whole = folder / "feed-faulty" / name, {file: content for file, _, content in files[name]}
        summary[name]["overlooked"] = overlooked(catalog, settings.domain(name), feed, whole)
        summary[name]["in_quarantine"] = check_quarantine(store, catalog, name, feed, whole)
        summary[name]["equal_to_backfill"] = equal_where_inputs_are(settings, clean, name)
    equal = sum(summary[name]["equal_to_backfill"]["equal"] for name in settings.domains)
    assert equal, "no forecast had the input of the day without faults"
    return summary


def backfill_clean(settings: Settings, plan: Plan, now: datetime) -> None:
    """Forecast the periods of work from the feeds without faults."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for name in settings.domains:
        for start, end in plan.work:
            operations.backfill(settings, name, start, end, now)


def memory_mb(memory: dict[float, int]) -> dict[int, int]:
    """By hours since the start; a median of half an hour, since one look may meet a forecast in the making."""
    hours = [hour for hour in range(1, 200) if any(hour - 0.5 < at <= hour for at in memory)]
    some = hours[:: max(1, len(hours) // 12)]
    return {hour: round(np.median([memory[at] for at in memory if hour - 0.5 < at <= hour]) / 2**20) for hour in some}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0, help="of work; the pause comes on top")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--catalog", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--s3", action="store_true", help="the store is a bucket that fails 5 %% of the calls")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary folder")
    arguments = parser.parse_args()
    if arguments.catalog == "postgresql" and (reason := postgres_server.missing()):
        parser.error(reason)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        summary = soak(folder, arguments.seed, arguments.hours, arguments.kills, arguments.s3, arguments.catalog)
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

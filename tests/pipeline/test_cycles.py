"""Cycles: published once, whatever is killed, lost, late or at work twice."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import cycles, nowcast, operations, publish, times
from pipeline.catalog import Catalog, Lease
from pipeline.errors import LeaseLost
from pipeline.issue import Wanted
from pipeline.issue import issue as issue_cycles
from pipeline.packing import read_digest
from pipeline.rebuild import rebuild
from tests.conftest import NOW, PROJECT, settings_for
from tests.pipeline.cycles import STEP, T0, backfill, digests, files_below, issue


def test_again_there_is_no_work_and_no_digest_changes(settings):
    first = backfill(settings, T0, T0 + 2 * STEP)
    assert first.cycles == {"published": 3} and first.methods == {"tiny": 3}
    before, files = digests(settings), files_below(settings.root)
    stamps = {f: (settings.root / f).stat().st_mtime_ns for f in files}
    again = backfill(settings, T0, T0 + 2 * STEP)
    assert again.cycles == {"unchanged": 3}
    assert (again.ingest.framed, again.verify.scored) == (0, 0)
    assert digests(settings) == before
    assert {f: (settings.root / f).stat().st_mtime_ns for f in files_below(settings.root)} == stamps


def test_two_workers_and_another_root_make_the_same_bytes(settings, tmp_path):
    backfill(settings, T0, T0 + 7 * STEP)
    other = settings_for(tmp_path / "other", settings.domain("small"))
    backfill(other, T0, T0 + 7 * STEP, workers=2)
    assert digests(other) == digests(settings)
    assert files_below(other.root) == files_below(settings.root)
    a, b = (next((s.root / "verification").rglob("*.nc")) for s in (settings, other))
    assert read_digest(a) == read_digest(b)


def _backfill_forever(settings) -> None:
    operations.backfill(settings, "small", T0, T0 + 7 * STEP, NOW)


@pytest.mark.parametrize("seconds", [2.5, 3.5, 5.0])
def test_a_run_killed_at_any_moment_and_run_again_leaves_the_same(settings, tmp_path, seconds):
    whole = settings_for(tmp_path / "whole", settings.domain("small"))
    backfill(whole, T0, T0 + 7 * STEP)
    worker = multiprocessing.get_context("spawn").Process(target=_backfill_forever, args=(settings,))
    worker.start()
    time.sleep(seconds)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    backfill(settings, T0, T0 + 7 * STEP)
    assert digests(settings) == digests(whole)
    assert files_below(settings.root) == files_below(whole.root)
    assert list((settings.root / "tmp").iterdir()) == []


def processes_of(session: int) -> list[int]:
    """Processes that a command and its children run in."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_backfill_stops_with_its_workers(settings, tmp_path, ending):
    grid = "{ crs = '+proj=laea +lat_0=51 +lon_0=5 +units=m', shape = [192, 192], spacing_m = 2000, centre = [5, 51] }"
    (tmp_path / "nowcast.toml").write_text(
        f"root = '{settings.root}'\n[domains.small]\ncadence_minutes = 10\ngrid = {grid}\n"
        "source = { kind = 'synthetic', seed = 21 }\n"
    )
    line = "backfill small --from 2024-06-01T02:00Z --to 2024-06-01T22:00Z --workers 2 --set prefect_api_url=http://x:9"
    command = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *line.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # whoever runs the tests in the background of a shell ignores SIGINT, and so would the command
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((settings.root / "products").rglob("*.nc")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ending == signal.SIGINT:  # Ctrl-C reaches every process
        os.killpg(command.pid, signal.SIGINT)
        said = command.communicate(timeout=120)[1]
        assert command.returncode == 130 and "the same command goes on" in said
    else:
        command.kill()
        command.wait()
    made = len(list((settings.root / "products").rglob("*_r1.nc")))
    deadline = time.monotonic() + 30
    while processes_of(command.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(command.pid) == []
    assert 0 < made < 60  # of 121
    assert len(list((settings.root / "products").rglob("*_r1.nc"))) <= made + 8


def test_a_product_whose_row_was_lost_is_adopted_and_not_made_again(settings):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    stamp = path.stat().st_mtime_ns
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.delete(tables.cycles))
    assert backfill(settings).cycles == {"published": 1}
    assert digests(settings) == before and path.stat().st_mtime_ns == stamp


def test_latest_is_written_by_the_run_that_finds_it_missing(settings):
    operations.run(settings, "small", T0, T0)
    latest = settings.root / "products/small/latest.json"
    for lost in ("latest", "row and latest"):
        latest.unlink()
        if lost != "latest":
            with Catalog(settings.catalog).write() as connection:
                connection.execute(sa.delete(tables.cycles))
        operations.run(settings, "small", T0, T0)
        assert latest.exists(), lost


def test_who_lost_the_lease_replaces_nothing(settings, monkeypatch):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    inode = path.stat().st_ino
    monkeypatch.setattr(publish, "recorded", lambda *_: None)  # as it looked before the other process published
    monkeypatch.setattr(publish, "adopt", lambda *_: None)

    def lost(self, connection):
        raise LeaseLost("taken over")

    monkeypatch.setattr("pipeline.catalog.Lease.check", lost)
    (outcome,) = issue(settings, T0)
    assert outcome.state == "held"
    assert digests(settings) == before and path.stat().st_ino == inode
    assert list((settings.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("lost", ["small_20240601T020000Z_r1.nc", "small_20240601T020000Z_r1.baselines.nc"])
def test_a_product_that_was_lost_is_made_again(settings, lost):
    first = backfill(settings)
    before = digests(settings)
    (settings.root / first.products[0]).with_name(lost).unlink()
    assert backfill(settings).cycles == {"published": 1}
    assert digests(settings) == before and (settings.root / first.products[0]).with_name(lost).is_file()


def test_the_time_of_issue_is_that_of_publication_and_comes_back_after_a_loss(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    store, catalog = operations.open_root(settings)
    clock = times.Clock(NOW - timedelta(seconds=30), time.monotonic() - 30)
    domain = settings.domain("small")
    wanted = [Wanted(domain, T0)]
    list(issue_cycles(store, catalog, nowcast.Loader(store, settings, catalog).methods, wanted, "issued", clock))
    (row,) = catalog.read(sa.select(tables.cycles))
    issued = row["issue_time"] - NOW.timestamp()
    assert 0 <= issued < 25
    rebuild([domain], store, catalog)
    (row,) = catalog.read(sa.select(tables.cycles))
    assert row["issue_time"] - NOW.timestamp() == pytest.approx(issued, abs=1)


def test_a_late_feed_still_gives_the_newest_forecast_from_all_its_inputs(settings):
    report = operations.run(settings, "small", None, T0 + timedelta(minutes=7))
    assert report.methods == {"tiny": 1}


def test_a_damaged_product_without_a_row_is_made_again(settings):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    path.write_bytes(path.read_bytes()[:5000])
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.delete(tables.cycles))
    backfill(settings)
    assert digests(settings) == before and read_digest(path) == before[times.seconds(T0)][0]


def test_issued_and_hindcast_stand_beside_each_other(settings):
    now = T0 + timedelta(minutes=12)
    live = operations.run(settings, "small", None, now)
    assert live.products == ["products/small/issued/2024/06/01/small_20240601T021000Z_r1.nc"]
    old = operations.run(settings, "small", T0 + STEP, NOW)
    assert old.products == ["products/small/hindcast/2024/06/01/small_20240601T021000Z_r1.nc"]
    kinds = Catalog(settings.catalog).read(sa.select(tables.cycles.c.kind, tables.cycles.c.content_digest))
    assert {row["kind"] for row in kinds} == {"issued", "hindcast"}


def test_latest_follows_what_is_issued_and_never_moves_back(settings):
    import json

    latest = settings.root / "products/small/latest.json"
    operations.run(settings, "small", T0, NOW)
    assert not latest.exists()  # a hindcast is not news
    operations.run(settings, "small", T0 + STEP, T0 + STEP)
    operations.run(settings, "small", T0, T0 + STEP)
    assert json.loads(latest.read_text())["reference_time"] == "2024-06-01T02:10:00Z"


def test_another_process_at_work_is_left_alone(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    with Catalog(settings.catalog).lease("cycle/small/hindcast/2024-06-01T02:00:00Z"):
        (held,) = issue(settings, T0)
    assert held.state == "held"
    (made,) = issue(settings, T0)
    assert made.state == "published"


def test_two_backfills_at_once_share_the_work_and_both_are_done(settings, monkeypatch):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    monkeypatch.setattr("pipeline.cycles.HELD_PAUSE_S", 0.05)
    lease = Lease(Catalog(settings.catalog), "cycle/small/hindcast/2024-06-01T02:00:00Z")
    assert lease.acquire()
    threading.Timer(0.3, lease.release).start()
    report = backfill(settings)
    assert report.cycles == {"published": 1} and report.problems == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    script = (
        "import sys\nfrom tests.pipeline.cycles import issue, T0\n"
        "from tests.conftest import settings_for, synthetic_domain\nfrom pathlib import Path\n"
        "from pipeline.errors import StoreUnavailable\n"
        "settings = settings_for(Path(sys.argv[1]), synthetic_domain(model=sys.argv[2]))\n"
        "try:\n    issue(settings, T0)\nexcept StoreUnavailable as err:\n    print('said:', err)\n"
    )
    limit = 20_000  # bytes that one file may have: less than a product
    done = subprocess.run(
        [sys.executable, "-c", script, str(settings.root), settings.domain("small").model],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert "said: cannot write" in done.stdout or "said: the catalog" in done.stdout, done.stderr[-2000:]
    assert not list((settings.root / "products").rglob("*.nc")) and not list((settings.root / "tmp").iterdir())
    (made,) = issue(settings, T0)
    assert made.state == "published"


def test_cycles_that_stay_held_are_waited_for_once_and_not_one_after_the_other(settings, monkeypatch):
    """Giving one up counted as a sign of work, so that each of the others was waited for anew."""
    held = [T0 + n * STEP for n in range(3)]
    operations.ingest(settings, "small", T0 - 4 * STEP, held[-1], NOW)
    monkeypatch.setattr("pipeline.cycles.HELD_PAUSE_S", 0.05)
    monkeypatch.setattr("pipeline.cycles.HELD_PATIENCE_S", 1.0)
    names = [f"cycle/small/hindcast/{times.iso(time)}" for time in held]
    with Catalog(settings.catalog).leases(names):
        started = time.monotonic()
        outcomes = list(cycles.issue_cycles(settings, settings.domain("small"), held, "hindcast", times.Clock(NOW), 1))
    assert [outcome.state for outcome in outcomes] == ["held"] * 3
    assert time.monotonic() - started < 2.5

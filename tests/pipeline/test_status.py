"""What an operator sees: ages, gaps, radars and latencies from the rows of the catalog, and nothing is written."""

import dataclasses
import json
import os
import shutil
import signal
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import alerts, status_page, times
from pipeline import catalog as tables
from pipeline.catalog import Catalog
from pipeline.disk import _used, read_disk
from pipeline.errors import StoreUnavailable
from pipeline.feed_health import read_feed
from pipeline.latency import Latency, latencies, spreads
from pipeline.status import read_status
from pipeline.storage import Store
from pipeline.timeline import DAY, _plain, read_timeline
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.simulated import AXIS, NOW, STEP, Live

DOMAIN = synthetic_domain()


@pytest.fixture
def live(catalog):
    return Live(catalog)


@pytest.fixture
def settings(root):
    return settings_for(root, DOMAIN)


def one_latency(catalog) -> Latency:
    (found,) = latencies(catalog, "small", NOW - DAY, NOW)
    return found


def test_latency_goes_from_the_last_sweep_to_the_complete_file(live, catalog):
    live.frame(0, "alfa", "brav")
    live.volume(0, "brav", ends_s=25)
    live.volume(0, "late", ends_s=49, state="duplicate", slot=0)  # came, but is not in the frame
    live.volume(1, "alfa", ends_s=620)
    live.issued(0)
    # sweep at 25, arrival at 40, frame at 45, writing begins at 50 and takes 1 s
    assert one_latency(catalog).spans == {
        "arrival": 15, "framing": 5, "forecast": 6, "total": 26, "read": 0.5, "forecast_model": 2, "write": 1,
    }  # fmt: skip


def test_a_composite_is_known_by_its_key(live, catalog):
    live.volume(0, "", key="comp.h5", slot=0, ends_s=0)
    at = AXIS.timestamp()
    live.write(
        tables.frames, valid_time=times.seconds(AXIS), source_key="comp.h5", arrived_at=at + 40, framed_at=at + 45
    )
    live.issued(0)
    assert (one_latency(catalog).spans["arrival"], one_latency(catalog).spans["total"]) == (40, 51)


def test_what_a_rebuild_lost_is_not_known_and_never_nonsense(live, catalog):
    live.frame(0)
    live.write(tables.frames, valid_time=times.seconds(AXIS))
    live.issued(0, stages="")
    assert one_latency(catalog).spans == {"total": 50}  # from the reference time
    assert set(spreads([one_latency(catalog)])) == {"total"}


def test_a_frame_made_anew_says_nothing_of_the_forecast_before(live, catalog):
    live.frame(0, "alfa", framed_s=900, arrives_s=890)
    live.issued(0)
    found = one_latency(catalog)
    assert (found.arrived, found.framed) == (None, None) and found.spans["total"] == 51


def test_a_clock_that_is_ahead_gives_no_negative_latency(live, catalog):
    live.frame(0, "alfa")
    live.volume(0, "alfa", ends_s=300)
    live.issued(0)
    assert set(one_latency(catalog).spans) == {"framing", "forecast", "read", "forecast_model", "write"}


def test_median_and_quantile_of_a_day(live, catalog):
    with live.at_once():
        for n in range(21):
            live.frame(n, "alfa")
            live.issued(n, after_s=50 + 10 * n, stages="")
    total = spreads(latencies(catalog, "small", NOW - DAY, NOW))["total"]
    assert (total.median, total.p95, total.count) == (140, 230, 21)


def test_gaps_are_runs_with_their_reasons(live, catalog):
    live.good_day()
    for before in (50, 51, 52):
        live.skipped(before)
    live.skipped(40, "the archive was unreadable")
    live.issued(30, "optical_flow", "frames are missing: 2026-03-01T01:00:00Z")
    live.issued(29, "optical_flow", "frames are missing: 2026-03-01T01:10:00Z")
    with catalog.write() as connection:
        gone = times.seconds(AXIS - 20 * STEP)
        connection.execute(sa.delete(tables.cycles).where(tables.cycles.c.reference_time == gone))
    found = read_timeline(catalog, DOMAIN, NOW)
    assert [gap.text for gap in found.gaps] == [
        "03:20 to 03:40, 3 cycles: no frame at the reference time",
        "05:20, 1 cycle: the archive was unreadable",
        "08:40, 1 cycle: not accounted for: no forecast and no reason is recorded",
    ]
    assert found.fallbacks == {"optical_flow: frames are missing": 2}
    assert found.counts == {"model": 137, "skipped": 4, "fallback": 2, "unaccounted": 1}
    assert (found.missed, found.fallbacks_in_a_row) == (0, 0)


@pytest.mark.parametrize(
    ("reason", "plain"),
    [
        ("no frame of 2026-03-01T01:00:00Z within 30 minutes: nothing", "no frame within 30 minutes: nothing"),
        ("frames are missing: 2026-03-01T01:00:00Z, 2026-03-01T01:10:00Z (damaged)", "frames are missing (damaged)"),
        ("nothing was at work until 2026-03-01T01:00:00Z, which is too late", "nothing was at work, which is too late"),
        ("radar 2 failed, at 3", "radar 2 failed, at 3"),
    ],
)
def test_equal_reasons_of_different_times_are_one(reason, plain):
    assert _plain(reason) == plain


def test_an_instant_waits_while_its_grace_lasts_and_is_not_asked_for_before_live_operation(live, catalog):
    live.feed(since=5)
    states = [cycle.state for cycle in read_timeline(catalog, DOMAIN, NOW).cycles]
    # the grace of 30 minutes, and two for recording, are over for 11:30 at 12:06
    assert states[-6:] == ["unaccounted"] * 3 + ["waiting"] * 3 and set(states[:-6]) == {"not_live"}


def test_the_newest_revision_counts(live, catalog):
    live.good_day()
    live.issued(0, "optical_flow", "frames are missing", revision=2)
    assert read_timeline(catalog, DOMAIN, NOW).newest.state == "fallback"


@pytest.mark.parametrize(
    ("newest", "minutes", "missed"),
    [
        (0, 0, 0),
        (1, -0.1, 0),  # 12:05:54, the deadline of 12:00 is 12:05, and a minute for making it
        (1, 0.1, 1),
        (3, 0.1, 3),
        (200, 0.1, 200),  # more than the day that is read
        (None, 0.1, 301),  # since live operation began
    ],
)
def test_a_forecast_is_missed_when_its_deadline_is_over(live, catalog, newest, minutes, missed):
    live.feed(since=300)
    if newest is not None:
        live.issued(newest)
    assert read_timeline(catalog, DOMAIN, NOW + timedelta(minutes=minutes)).missed == missed


def test_what_was_given_up_is_missed_at_once_with_its_reason(live, catalog):
    live.feed()
    live.issued(1)
    live.skipped(0, "the places lie outside")
    found = read_timeline(catalog, DOMAIN, NOW - timedelta(minutes=5))
    assert (found.missed, found.why_missed) == (1, "the places lie outside")


def test_frames_without_forecasts_point_to_the_live_process(live, catalog):
    live.good_day(until=3)
    live.frame(0, "alfa")
    assert read_timeline(catalog, DOMAIN, NOW).why_missed.startswith(
        "the frame of 12:00 UTC is there: the live process"
    )


def test_radars_are_on_time_late_or_silent_and_a_slow_one_may_be_slow(live, catalog, settings):
    with live.at_once():
        for n in range(100):
            live.volume(n, "fine")
            if n % 2:
                live.volume(n + 1, "slow")  # every 20 minutes, last 11:40
            if n > 1:
                live.volume(n, "late")
            if n > 3:
                live.volume(n, "gone")
    live.volume(0, "late", state="quarantined")
    live.volume(0, "", state="framed")
    found = {radar.name: (radar.state, radar.unusable) for radar in read_feed(settings, catalog, DOMAIN, NOW).radars}
    assert found == {
        "composite": ("on time", 0), "fine": ("on time", 0), "gone": ("silent", 0), "late": ("late", 1),
        "slow": ("late", 0),
    }  # fmt: skip
    before = read_feed(settings, catalog, DOMAIN, NOW - timedelta(minutes=2)).radars
    assert {radar.name: radar.state for radar in before}["slow"] == "on time"


def test_status_says_what_is_wrong_the_worst_first(live, catalog, store, settings):
    live.good_day("alfa", until=3)
    live.feed(fault="https://user:hush@feed/x: refused", polled=NOW - timedelta(minutes=30))
    found = read_status(settings, store, catalog, NOW)
    assert found.level == "bad" and found.headline == (
        "small: no forecast for 3 cycles (30 minutes): no frame has come since 11:30 UTC"
    )
    assert found.domains[0].problems[1].startswith("the source cannot be polled: ") and "hush" not in str(found)
    assert (found.domains[0].forecast_age_minutes, found.domains[0].frame_age_minutes) == (36, 36)


def test_a_good_day_is_good_and_an_archive_is_off(live, catalog, store, root):
    live.good_day("alfa", "brav")
    Live(catalog, "old").issued(900, kind="hindcast")
    both = settings_for(root, DOMAIN, synthetic_domain("old"))
    with catalog.lease("live"):
        found = read_status(both, store, catalog, NOW)
    nobody = read_status(both, store, catalog, NOW)
    assert nobody.level == "warn" and nobody.headline.startswith("no live process is at work")
    assert {one.name: one.level for one in found.domains} == {"small": "good", "old": "off"}
    assert (found.level, found.headline) == ("good", "forecasts of the domain are on time")
    assert found.domains[1].verification_waiting == 139  # of those whose 40 minutes are over


def test_who_is_at_work(catalog, store, settings):
    with catalog.lease("live"):
        (row,) = read_status(settings, store, catalog, NOW).leases
    assert row == {"name": "live", "host": os.uname().nodename, "process": str(os.getpid())}
    assert read_status(settings, store, catalog, NOW).leases == ()


def test_disk_is_counted_by_kind(root):
    (root / "archive/a").mkdir(parents=True)
    (root / "archive/a/0").write_bytes(b"x" * 5000)
    (root / "catalog.sqlite").write_bytes(b"x" * 100)
    _used.cache_clear()
    found = read_disk(root)
    assert found.used == {"archive": 8192, "catalog": 4096} and found.complete and found.free < found.size
    assert read_disk(root / "nowhere").free is None


def forked(work) -> int:
    """A process that does ``work``, with what is imported here; SQLite must not be open in this one."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.mark.parametrize("at_work", [False, True], ids=["nobody at work", "another process at work"])
def test_status_reads_a_root_that_may_not_be_written(at_work):
    folder = Path(tempfile.mkdtemp())  # those of pytest are closed to others
    root = folder / "root"
    settings = settings_for(root, DOMAIN)
    written, write = os.pipe()

    def other() -> None:
        Store(root)
        catalog = Catalog(settings.catalog)
        Live(catalog).good_day()
        if not at_work:
            catalog.close()  # SQLite removes its log
        os.write(write, b"x")
        signal.pause()

    def reader() -> None:
        if os.geteuid() == 0:  # who may write everywhere
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(OSError):
            (root / "x").write_text("x")
        found = read_status(settings, Store(root, reading=True), Catalog(settings.catalog, reading=True), NOW)
        assert found.domains[0].level == "good" and found.domains[0].timeline.counts == {"model": 144}

    process = forked(other)
    os.close(write)
    try:
        assert os.read(written, 1) == b"x"
        for path in (folder, root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        assert (root / "catalog.sqlite-wal").exists() == at_work
        assert os.waitpid(forked(reader), 0)[1] == 0
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(written)
        for path in (folder, root, root / "tmp"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_status_of_a_root_that_is_not_there_makes_nothing(root, settings):
    found = read_status(settings, Store(root, reading=True), Catalog(settings.catalog, reading=True), NOW)
    assert (found.level, found.headline) == ("off", "no domain is forecast live") and not root.exists()


def test_a_catalog_of_another_schema_is_not_changed_by_reading(catalog):
    with catalog.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(StoreUnavailable, match="nowcast catalog upgrade"):
        Catalog(catalog.url, reading=True)


def test_the_page_is_whole_escaped_and_asks_for_nothing(live, catalog, store, settings):
    live.good_day("<script>alert(1)</script>")
    live.skipped(3, "<img src=x onerror=alert(1)>")
    alerts.check(settings, store, catalog, NOW)
    text = status_page.write(settings, store, catalog, NOW).read_text()
    assert (store.root / "status/index.html").is_file()
    assert "alert(1)" in text and "<script>alert" not in text and "<img" not in text
    assert text.count('<rect class="') == 144 + 2  # every cycle, and two in the key
    assert "//" not in text.replace("  // a page", "") and "11:30, 1 cycle: &lt;img" in text
    assert json.dumps(times.seconds(NOW)) in text


def test_status_and_alerts_are_the_same_on_postgresql(store, settings, postgres_url):
    other = Catalog(postgres_url)
    found = []
    for catalog in (Catalog(settings.catalog), other):
        live = Live(catalog)
        live.good_day("alfa", "brav", until=3)
        live.skipped(2)
        told = alerts.check(settings, store, catalog, NOW)
        reading = Catalog(catalog.url, reading=True)
        found.append((told, dataclasses.replace(read_status(settings, store, reading, NOW), disk=None)))
        reading.close()
        catalog.close()
    assert found[0] == found[1] and found[0][1].level == "bad" and len(found[0][0]) == 2


def test_data_of_domains_that_the_settings_do_not_name_are_mentioned(store, catalog, settings):
    for name in ("small", "gone"):
        store.archive(name).mkdir(parents=True)
    assert read_status(settings, store, catalog, NOW).unnamed == ("gone",)

"""The live process under a simulated clock: what comes late, twice, broken or not at all changes nothing else."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import promotion, times
from pipeline.catalog import Catalog
from pipeline.heartbeat import LIVE
from pipeline.intake import OnTheSpot
from pipeline.lateness import expected_radars
from pipeline.live import Live
from pipeline.resident import tick_once
from pipeline.sources.synthetic import SyntheticRain
from pipeline.sources.synthetic_radars import RadarNetwork
from pipeline.storage import Store
from pipeline.verification.verify import verify
from pipeline.viewer.page import newest_forecast
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import write_model
from tests.pipeline.test_ingest_volumes import NETWORK, feed
from tests.simulation import Script, SimulatedClock, arrive, composite, live_until

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
RULES = {"deadline_s": 300, "grace_s": 1500}
RAIN = SyntheticRain(synthetic_domain().source, synthetic_domain())


class Office:
    """One gridded feed, a root and the live process; frames come 60 s after their time unless a test says otherwise."""

    def __init__(self, folder, *names, start=T0 + timedelta(seconds=30), **changes):
        self.folder, self.clock, self.script = folder, SimulatedClock(start), Script()
        domains = []
        for name in names or ("small",):
            (folder / name).mkdir(exist_ok=True)
            source = {"kind": "gridded", "reader": "odim_comp", "uri": str(folder / name)}
            values = {
                "grid": {"native": True},
                "source": source,
                "model": "last_frame",
                "lateness": RULES,
                "input_frames": 3,
            }
            domains.append(synthetic_domain(name, **{**values, **changes}))
        self.settings = settings_for(folder / "root", *domains)
        self.begin()

    def begin(self):
        self.store, self.catalog = Store(self.settings.root), Catalog(self.settings.catalog)
        self.batches = []
        intake = OnTheSpot(self.store, self.catalog)
        self.live = Live(self.settings, self.store, self.catalog, self.clock, intake, after=self.batches.append)

    def comes(self, time, after=60.0, name="", content=None, domain="small"):
        path = self.folder / domain / (name or f"{times.compact(time)}.h5")
        made = composite(RAIN, time, self.folder) if content is None else content
        self.script.at(time + timedelta(seconds=after), arrive(path, made))

    def history(self, domain="small"):
        for n in range(1, 5):
            self.comes(T0 - n * STEP, domain=domain)

    def run(self, until):
        live_until(self.live, self.clock, self.script, until)

    def cycles(self, domain="small"):
        c = tables.cycles.c
        query = sa.select(tables.cycles).where(c.domain == domain).order_by(c.reference_time, c.revision)
        return {(tables.from_seconds(r["reference_time"]), r["revision"]): r for r in self.catalog.read(query)}

    def row(self, time, revision=1, domain="small"):
        return self.cycles(domain).get((time, revision))


@pytest.fixture
def office(tmp_path):
    office = Office(tmp_path)
    office.history()
    return office


def test_every_cycle_is_issued_when_its_frame_is_there(office):
    for n in range(4):
        office.comes(T0 + n * STEP)
    office.run(T0 + 3 * STEP + timedelta(minutes=3))
    issued = {time: row for (time, _), row in office.cycles().items() if time >= T0}
    assert sorted(issued) == [T0 + n * STEP for n in range(4)]
    for time, row in issued.items():
        assert (row["state"], row["kind"], row["cause"]) == ("published", "issued", "complete")
        assert 60 <= row["issue_time"] - time.timestamp() <= 120
    latest = json.loads((office.settings.root / "products/small/latest.json").read_text())
    assert latest["reference_time"] == times.iso(T0 + 3 * STEP)


def test_a_late_frame_is_forecast_and_says_so_and_one_that_never_comes_is_explained(office):
    office.comes(T0)
    office.comes(T0 + STEP, after=700)
    office.comes(T0 + 3 * STEP)
    office.run(T0 + 2 * STEP + timedelta(seconds=1500 + 90))
    assert office.row(T0 + STEP)["cause"] == "late: what its frame is made from came 700 s after its time"
    missed = office.row(T0 + 2 * STEP)
    assert (missed["state"], missed["cause"]) == ("skipped", "given up")
    assert missed["reason"] == "no frame of 2024-06-01T02:20:00Z within 25 minutes: nothing arrived for it"
    assert office.row(T0 + 3 * STEP)["state"] == "published"
    # what comes after that changes nothing for the cycle, but it is in the archive for verification
    office.comes(T0 + 2 * STEP, after=3000)
    office.run(T0 + 2 * STEP + timedelta(minutes=75))
    assert office.row(T0 + 2 * STEP)["state"] == "skipped"
    assert (
        len(
            office.catalog.read(
                sa.select(tables.frames).where(tables.frames.c.valid_time == times.seconds(T0 + 2 * STEP))
            )
        )
        == 1
    )


def test_out_of_order_duplicate_and_renamed_files_change_nothing(office):
    office.comes(T0 + STEP)
    office.comes(T0, after=650)
    other = composite(RAIN, T0 + timedelta(minutes=5), office.folder)  # other rain under the same key
    office.run(T0 + STEP + timedelta(minutes=2))
    first = dict(office.cycles())
    office.comes(T0, after=800, name=f"copy_of_{times.compact(T0)}.h5")
    office.comes(T0 + STEP, after=400, content=other)
    office.run(T0 + STEP + timedelta(minutes=8))
    assert {k: r["content_digest"] for k, r in office.cycles().items() if k in first} == {
        k: r["content_digest"] for k, r in first.items()
    }
    assert not [key for key in office.cycles() if key[1] > 1]
    states = [
        row["state"]
        for row in office.catalog.read(sa.select(tables.volumes.c.state, tables.volumes.c.key).order_by("key"))
    ]
    assert "duplicate" in states and "quarantined" in states  # the other rain says another time inside


def test_a_half_uploaded_file_is_used_when_it_is_whole(office):
    whole = composite(RAIN, T0, office.folder)
    office.comes(T0, after=60, content=whole[: len(whole) // 2])
    office.comes(T0, after=200, content=whole)
    office.run(T0 + timedelta(minutes=5))
    row = office.row(T0)
    assert row["state"] == "published" and 200 <= row["issue_time"] - T0.timestamp() < 300


def test_a_file_from_the_future_is_left_until_its_time_comes(office):
    office.comes(T0)
    office.comes(T0 + STEP, after=-500)
    office.run(T0 + timedelta(minutes=4))
    assert office.row(T0 + STEP) is None and office.row(T0)["state"] == "published"
    office.run(T0 + STEP + timedelta(minutes=1))
    assert office.row(T0 + STEP)["state"] == "published"


def test_a_frozen_feed_is_forecast_and_shows_in_the_catalog(office):
    from pipeline.frames.correlation import FROZEN

    frozen = RAIN.rain_rate(T0)
    from pipeline.sources.synthetic import write_composite

    for n in range(4):
        write_composite(office.folder / "x.h5", frozen, RAIN.grid, T0 + n * STEP)
        office.comes(T0 + n * STEP, content=(office.folder / "x.h5").read_bytes())
    office.run(T0 + 3 * STEP + timedelta(minutes=3))
    assert office.row(T0)["correlation"] < FROZEN <= office.row(T0 + 3 * STEP)["correlation"]


def test_after_a_pause_the_newest_comes_first_then_what_is_still_of_use(office):
    office.comes(T0)
    office.run(T0 + timedelta(minutes=3))
    for n in range(1, 10):
        office.comes(T0 + n * STEP)
    office.clock.set(T0 + 9 * STEP + timedelta(minutes=2))
    office.begin()  # after an hour and a half without a process
    office.run(office.clock.now() + timedelta(seconds=30))
    order = [times.iso(o.reference_time) for batch in office.batches for o in batch]
    assert order[:3] == [times.iso(T0 + n * STEP) for n in (9, 8, 7)] and len(order) == 3
    for n in range(1, 7):
        row = office.row(T0 + n * STEP)
        assert row["state"] == "skipped" and "nothing was at work until 2024-06-01T03:32" in row["reason"]
    frames = office.catalog.read(sa.select(tables.frames.c.valid_time))
    assert len(frames) >= 10  # also those that came while nothing was at work


@pytest.mark.parametrize("restarted", [True, False])
def test_what_was_missed_in_a_long_pause_is_not_said_to_have_never_arrived(office, restarted):
    """The reasons are recorded before all that came meanwhile is read."""
    office.comes(T0)
    office.run(T0 + timedelta(minutes=3))
    office.comes(T0 + 40 * STEP)
    office.clock.set(T0 + 140 * STEP + timedelta(minutes=2))
    if restarted:
        office.begin()
    office.run(office.clock.now() + timedelta(seconds=60))
    skipped = [row for (time, _), row in office.cycles().items() if T0 < time < T0 + 137 * STEP]
    assert len(skipped) == 136
    assert {row["reason"] for row in skipped} == {
        "nothing was at work until 2024-06-02T01:22:00Z, which is too late for it"
    }


def test_reissue_is_off_by_default_and_gives_a_further_revision_when_asked(tmp_path):
    for reissue in (False, True):
        folder = tmp_path / str(reissue)
        folder.mkdir()
        office = Office(folder, lateness={**RULES, "reissue": reissue})
        office.comes(T0 - STEP)
        office.comes(T0)
        office.comes(T0 - 2 * STEP, after=1500)  # an input comes five minutes after the forecast
        office.run(T0 + timedelta(minutes=9))
        first, second = office.row(T0), office.row(T0, 2)
        assert first["state"] == "published"
        assert (second is not None) == reissue
        if second is not None:
            assert (
                second["cause"].startswith("reissue: ")
                and "2024-06-01T01:40:00Z" in second["cause"]
                and second["inputs_digest"] != first["inputs_digest"]
            )
            assert (office.settings.root / first["path"]).is_file() and second["path"].endswith("_r2.nc")
            latest = json.loads((office.settings.root / "products/small/latest.json").read_text())
            assert (latest["path"], latest["revision"]) == (second["path"], 2)


def test_domains_go_together_but_a_late_one_is_not_waited_for_longer_than_allowed(tmp_path):
    office = Office(tmp_path, "one", "two")
    office.settings = office.settings.model_copy(
        update={"live": office.settings.live.model_copy(update={"batch_wait_s": 60.0, "poll_s": 5.0})}
    )
    office.begin()
    for name in ("one", "two"):
        office.history(name)
        office.run(office.clock.now())
    office.comes(T0 + STEP, after=60, domain="one")
    office.comes(T0 + STEP, after=90, domain="two")
    office.comes(T0 + 2 * STEP, after=60, domain="one")
    office.comes(T0 + 2 * STEP, after=400, domain="two")
    live_until(office.live, office.clock, office.script, T0 + 3 * STEP - timedelta(seconds=30), timedelta(seconds=5))
    together = [{o.domain for o in batch if o.reference_time == T0 + STEP} for batch in office.batches]
    assert {"one", "two"} in together
    delay = office.row(T0 + 2 * STEP, domain="one")["issue_time"] - (T0 + 2 * STEP).timestamp()
    assert 115 <= delay <= 130
    assert office.row(T0 + 2 * STEP, domain="two")["state"] == "published"


def test_a_domain_that_fails_does_not_harm_the_others(tmp_path, monkeypatch):
    office = Office(tmp_path, "bad", "good")
    for name in ("bad", "good"):
        office.history(name)
        office.comes(T0, domain=name)
    from pipeline import issue

    real = issue.publish.publish

    def fails(domain, *arguments):
        if domain.name == "bad":
            raise KeyError("a bug")
        return real(domain, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.issue.publish.publish", fails)
        office.run(T0 + timedelta(minutes=3))
        assert office.row(T0, domain="good")["state"] == "published" and office.row(T0, domain="bad") is None
    office.run(T0 + timedelta(minutes=5))  # it is tried again
    assert office.row(T0, domain="bad")["state"] == "published"


def test_a_feed_that_cannot_be_read_is_the_reason(office):
    office.comes(T0)
    office.run(T0 + timedelta(minutes=2))
    (office.folder / "small").rename(office.folder / "away")
    office.run(T0 + STEP + timedelta(seconds=1500 + 60))
    row = office.row(T0 + STEP)
    assert row["state"] == "skipped" and "cannot read the source folder" in row["reason"]
    (feed_row,) = office.catalog.read(sa.select(tables.feeds))
    assert feed_row["fault_at"] > feed_row["polled_at"] > 0


def test_the_watchdog_works_only_while_nobody_else_does(office):
    for n in range(-4, 1):
        arrive(
            office.folder / "small" / f"{times.compact(T0 + n * STEP)}.h5",
            composite(RAIN, T0 + n * STEP, office.folder),
        )(T0)
    with office.catalog.lease(LIVE):
        assert tick_once(office.settings, T0 + timedelta(minutes=1)) is None
    outcomes = tick_once(office.settings, T0 + timedelta(minutes=1))
    assert [o.reference_time for o in outcomes] == [T0, T0 - STEP, T0 - 2 * STEP]  # within the grace
    assert tick_once(office.settings, T0 + timedelta(minutes=2)) == []


# -- radars


def network_office(tmp_path, until, silent=lambda radar, time: False, late=lambda radar, time: 0.0):
    """Two radars; what they measure comes a minute after their last sweep."""
    office = Office.__new__(Office)
    domain = feed(tmp_path / "feed").model_copy(update={"model": "last_frame"})
    domain = domain.model_validate({**domain.model_dump(), "lateness": {**RULES}, "grid": domain.grid.model_dump()})
    office.folder, office.clock, office.script = tmp_path, SimulatedClock(T0 - 3 * STEP), Script()
    office.settings = settings_for(tmp_path / "root", domain)
    network = RadarNetwork(NETWORK.source, NETWORK)
    for ref in network.list(T0 - 4 * STEP, until):
        if silent(ref.radar, ref.nominal_time):
            continue
        path = tmp_path / "made.h5"
        network.write(path, ref.radar, ref.nominal_time)
        seconds = 60 + late(ref.radar, ref.nominal_time)
        office.script.at(
            ref.arrived_at + timedelta(seconds=seconds), arrive(tmp_path / "feed" / ref.key, path.read_bytes())
        )
    office.begin()
    return office


def test_a_radar_that_is_late_is_waited_for_until_the_deadline_and_one_that_left_is_not(tmp_path):
    def silent(radar, time):
        return radar == "east" and time >= T0

    office = network_office(tmp_path, T0 + 5 * STEP, silent)
    office.run(T0 + 5 * STEP + timedelta(minutes=8))
    rows = {time: row for (time, _), row in office.cycles("net").items()}
    causes = {n: rows[T0 + n * STEP]["cause"] for n in range(-1, 6)}
    assert causes[-1] == "complete"
    assert causes[0] == causes[1] == "deadline: without east"
    assert causes[3] == causes[4] == causes[5] == "complete"
    waited = rows[T0]["issue_time"] - T0.timestamp()
    assert 300 <= waited <= 360
    assert rows[T0 + 5 * STEP]["issue_time"] - (T0 + 5 * STEP).timestamp() < 200


def test_a_radar_that_comes_back_is_waited_for_again_when_it_is_on_time():
    def frame(*radars):
        return {"inputs": json.dumps([{"radar": radar, "carried": False} for radar in radars])}

    assert expected_radars([]) == set()
    assert expected_radars([frame("a", "b")]) == {"a", "b"}
    assert expected_radars([frame("a", "b"), frame("a", "b"), frame("a"), frame("a")]) == {"a"}
    assert expected_radars([frame("a"), frame("a", "b"), frame("a", "b"), frame("a", "b")]) == {"a", "b"}
    slow = [frame("a"), frame("a", "b"), frame("a"), frame("a", "b")]
    assert expected_radars(slow) == {"a"}


def test_when_all_radars_are_silent_every_cycle_says_so(tmp_path):
    office = network_office(tmp_path, T0 - STEP)
    office.run(T0 + STEP + timedelta(seconds=1560))
    rows = {time: row for (time, _), row in office.cycles("net").items()}
    for n in (0, 1):
        assert rows[T0 + n * STEP]["state"] == "skipped"
        assert "nothing arrived for it" in rows[T0 + n * STEP]["reason"]


# -- what a restart must not change


def test_forecasts_that_were_removed_stay_settled_after_a_restart(office):
    for n in range(4):
        office.comes(T0 + n * STEP)
    office.run(T0 + 3 * STEP + timedelta(minutes=3))
    office.clock.set(T0 + 3 * STEP + timedelta(hours=2))
    office.run(office.clock.now() + timedelta(minutes=1))
    c = tables.cycles.c
    with office.catalog.write() as connection:  # as retention does
        connection.execute(sa.delete(tables.cycles).where(c.reference_time <= times.seconds(T0 + 2 * STEP)))
    office.begin()
    office.run(office.clock.now() + timedelta(minutes=1))
    assert min(time for time, _ in office.cycles()) == T0 + 3 * STEP


def test_what_is_published_is_never_given_up_and_a_whole_product_without_a_row_is_adopted(office):
    from pipeline.issue import give_up

    office.comes(T0)
    office.run(T0 + timedelta(minutes=3))
    before = office.row(T0)
    domain = office.settings.domain("small")
    missed = {T0: "nothing was at work"}
    outcome = give_up(office.store, office.catalog, domain, missed, office.clock.now())[T0]
    assert outcome.state == "unchanged" and office.row(T0) == before
    with office.catalog.write() as connection:  # killed between the file and its row
        connection.execute(sa.delete(tables.cycles).where(tables.cycles.c.reference_time == times.seconds(T0)))
    assert give_up(office.store, office.catalog, domain, missed, office.clock.now())[T0].state == "published"
    assert office.row(T0)["content_digest"] == before["content_digest"]
    assert not [entry for entry in office.store.read_journal() if entry.get("event") == "skipped"]


def test_a_cycle_that_failed_until_the_end_says_why(office, monkeypatch):
    def fails(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("pipeline.issue.publish.publish", fails)
    office.comes(T0 + STEP)
    office.run(T0 + STEP + timedelta(seconds=1500 + 120))
    row = office.row(T0 + STEP)
    assert row["state"] == "skipped" and "nothing was at work" not in row["reason"]
    assert "failed: a fault of the software: KeyError: 'a bug' (" in row["reason"]
    assert "pipeline/issue.py:" in row["reason"]  # where it was raised


def test_a_slow_source_leaves_no_backlog_behind(office):
    """Every look takes longer than the time between two."""

    class Slow(OnTheSpot):
        def begin(self, domain, start, end, now):
            office.clock.set(now + timedelta(seconds=3))
            super().begin(domain, start, end, now)

    office.live.intake = Slow(office.store, office.catalog)
    feed = office.live.feeds[0]
    office.run(T0 + timedelta(minutes=30))
    assert feed.backlog == [] and feed.next_late > T0 + timedelta(minutes=30)


def test_a_decoder_that_kills_its_process_harms_no_other_feed(tmp_path, monkeypatch):
    from pipeline.intake import InProcesses

    office = Office(tmp_path, "aaa", "zzz")
    (tmp_path / "aaa" / f"{times.compact(T0)}.h5").write_bytes(b"kills")
    settings = office.settings
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n_read = pathlib.Path.open\n"
        "def _open(self, *a, **k):\n"
        "    if self.name.endswith('.h5') and self.exists() and self.stat().st_size == 5:\n        os._exit(9)\n"
        "    return _read(self, *a, **k)\n"
        "pathlib.Path.open = _open\n"
    )
    intake = InProcesses(settings)
    seen = {"aaa": [], "zzz": []}
    for _ in range(3):
        for name in seen:
            intake.begin(settings.domain(name), T0 - STEP, T0, T0 + STEP)
        while any(intake.is_busy(settings.domain(name)) for name in seen):
            for polled in intake.finished():
                seen[polled.domain].append(polled.fault)
    intake.close()
    assert all("was killed" in fault for fault in seen["aaa"])
    assert seen["zzz"][-1] == ""


def test_a_promotion_serves_from_the_next_cycle_and_a_shadow_is_verified_but_never_published(tmp_path):
    office = Office(tmp_path, model="optical_flow")
    office.history()
    for n in range(4):
        office.comes(T0 + n * STEP)
    domain = office.settings.domain("small")

    def issued(kind):
        c = tables.cycles.c
        rows = office.catalog.read(sa.select(tables.cycles).where(c.kind == kind).order_by(c.reference_time))
        return [(tables.from_seconds(row["reference_time"]), row["method"]) for row in rows if row["path"]]

    office.run(T0 + timedelta(minutes=3))
    write_model(office.store.models() / "beside", cadences_minutes=[10], name="beside")
    promotion.promote(office.store, office.catalog, domain, "beside", office.clock.now(), "a test", role="shadow")
    office.run(T0 + STEP + timedelta(minutes=3))
    assert issued("issued")[-1] == (T0 + STEP, "optical_flow")
    assert issued("shadow") == [(T0 + STEP, "beside")]
    assert "/issued/" in json.loads(office.store.latest("small").read_text())["path"]
    assert newest_forecast(domain, office.catalog, None)["kind"] == "issued"
    promotion.promote(office.store, office.catalog, domain, "beside", office.clock.now(), "a test")
    office.run(T0 + 2 * STEP + timedelta(minutes=3))
    assert issued("issued")[-1] == (T0 + 2 * STEP, "beside")
    assert len(issued("shadow")) == 1
    promotion.demote(office.store, office.catalog, domain, office.clock.now(), "a test")
    office.run(T0 + 3 * STEP + timedelta(minutes=3))
    assert issued("issued")[-1] == (T0 + 3 * STEP, "optical_flow")
    result = verify(domain, office.store, office.catalog, T0, T0 + 3 * STEP)
    assert any("/shadow/beside" in path for path in result.files)

"""Alerts of the operator: each rule raises once and ends once, whatever restarts, and every way of telling is used."""

import shutil
from collections import namedtuple
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from models import checkpoint
from pipeline import alert_rules, alerts, operations
from pipeline import catalog as tables
from pipeline.alerts import check
from pipeline.catalog import Catalog
from pipeline.drift import Inputs, read_inputs
from pipeline.settings import Alerts
from pipeline.status import read_status
from pipeline.verification.period import read_period
from pipeline.verification.quality import Skill, lately_and_before
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import STEP as CYCLE
from tests.pipeline.cycles import T0
from tests.pipeline.simulated import NOW, STEP, Live
from tests.pipeline.test_alerts import hook  # noqa: F401

DOMAIN = synthetic_domain()
MINUTE = timedelta(minutes=1)


@pytest.fixture
def live(catalog):
    return Live(catalog)


@pytest.fixture
def settings(root):
    return with_alerts(root)


def with_alerts(root, **changes):
    return settings_for(root, DOMAIN).model_copy(update={"alerts": Alerts(free_gb=0, **changes)})


def told(settings, store, catalog, now=NOW) -> list[str]:
    return [" ".join(filter(None, (t.event, t.kind, t.subject))) for t in check(settings, store, catalog, now)]


def no_forecast(live, bad):
    with live.at_once():
        for before in (0, 1):
            (live.skipped if bad else live.issued)(before)


def by_fallback(live, bad):
    with live.at_once():
        for before in range(3):
            live.issued(before, *(("optical_flow", "frames are missing") if bad or before else ()))


def silent_radar(live, bad):
    live.volume(0, "brav", state="framed")
    if bad:
        gone = sa.and_(tables.volumes.c.radar == "brav", tables.volumes.c.nominal_time > (NOW - 4 * STEP).timestamp())
        with live.catalog.write() as connection:
            connection.execute(sa.delete(tables.volumes).where(gone))


def failing_feed(live, bad):
    live.feed(fault="no route to host" if bad else "", polled=NOW - 3 * MINUTE)


def frozen(live, bad):
    live.issued(0, correlation=1.0 if bad else 0.9)


RULES = {
    "no_forecast": (
        no_forecast,
        "no forecast for 2 cycles (20 minutes), the newest is of 2026-03-01 11:40 UTC; no frame",
    ),
    "fallback": (by_fallback, "3 forecasts by optical_flow instead of champion: frames are missing"),
    "radar_silent brav": (silent_radar, "brav was not heard for 46 minutes, last 2026-03-01 11:20 UTC"),
    "feed_fault": (failing_feed, "the source cannot be polled, since 2026-03-01 12:03 UTC: no route to host"),
    "frozen_feed": (frozen, "the feed is frozen: the rain of 12:00 UTC is the same as 4 cycles before"),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_raises_once_and_ends_once(live, catalog, store, settings, caplog, kind):
    make, text = RULES[kind]
    live.good_day("alfa", "brav")
    assert told(settings, store, catalog) == []
    make(live, True)
    with caplog.at_level("WARNING", logger="pipeline"):
        assert told(settings, store, catalog) == [f"raised {kind}"]
    assert f"alert raised: small: {text}" in caplog.text
    again = Catalog(catalog.url)  # as after a restart
    assert told(settings, store, again, NOW + MINUTE) == []
    again.close()
    assert read_status(settings, store, catalog, NOW).level in ("warn", "bad")
    make(live, False)
    assert told(settings, store, catalog, NOW + MINUTE) == [f"ended {kind}"]
    assert told(settings, store, catalog, NOW + MINUTE) == []
    assert all(row["ended_at"] for row in catalog.read(sa.select(tables.alerts)))


@pytest.mark.parametrize(
    "change", [{"missed_cycles": 0}, {"fallback_cycles": 0}, {"radar_silent_minutes": 0}], ids=lambda c: next(iter(c))
)
def test_a_rule_that_is_switched_off_ends_what_it_raised(live, catalog, store, root, change):
    live.good_day("alfa", "brav")
    kind = {"missed_cycles": "no_forecast", "fallback_cycles": "fallback", "radar_silent_minutes": "radar_silent brav"}
    (name,) = change
    RULES[kind[name]][0](live, True)
    assert told(with_alerts(root), store, catalog) == [f"raised {kind[name]}"]
    off = with_alerts(root, **change)
    after = NOW if name != "radar_silent_minutes" else NOW + timedelta(days=8)
    assert f"ended {kind[name]}" in told(off, store, catalog, after)


def test_between_two_limits_nothing_changes(live, catalog, store, settings):
    live.good_day()
    live.issued(0, "optical_flow", "frames are missing")
    live.skipped(1)
    assert told(settings, store, catalog) == []  # two fallbacks would have to follow
    by_fallback(live, True)
    assert told(settings, store, catalog) == ["raised fallback"]
    live.skipped(0)
    assert told(settings, store, catalog) == []  # a cycle without a forecast ends nothing


def test_a_feed_that_ends_is_one_alert_and_not_one_per_radar(live, catalog, store, settings):
    radars = [f"r{n}" for n in range(6)]
    live.good_day(*radars)
    seen = []
    # the last volumes are of 11:55 to 12:00; the limit of 30 minutes is passed one by one
    with live.at_once():
        for n, radar in enumerate(radars):
            live.volume(0, radar, nominal_time=int((NOW - (6 + n) * MINUTE).timestamp()), key=f"last-{radar}")
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.volumes).where(tables.volumes.c.key.endswith("T120000Z")))
    for minute in (10, 14, *range(19, 27), 40):
        seen += [one for one in told(settings, store, catalog, NOW + minute * MINUTE) if "radar" in one]
    assert seen == ["raised radar_silent all radars"]
    now = NOW + timedelta(hours=2)
    for radar in radars[1:]:
        live.volume(0, radar, nominal_time=int(now.timestamp()), key=f"new-{radar}")
    back = [one for one in told(settings, store, catalog, now) if "radar" in one]
    assert sorted(back) == ["ended radar_silent all radars", "raised radar_silent r0"]


def test_what_was_heard_before_a_domain_went_live_raises_no_alert(live, catalog, store, settings):
    live.feed(since=1)
    live.volume(9, "alfa")
    live.volume(9, "brav")
    early = [one for one in told(settings, store, catalog, NOW + 10 * MINUTE) if "radar" in one]
    later = [one for one in told(settings, store, catalog, NOW + 20 * MINUTE) if "radar" in one]
    assert not early and "raised radar_silent all radars" in later


def test_a_radar_that_is_silent_for_days_stays_so_for_a_week(live, catalog, store, settings):
    live.good_day("alfa", "brav")
    silent_radar(live, True)
    told(settings, store, catalog)
    seen = []
    for days in range(1, 9):
        now = NOW + timedelta(days=days)
        live.volume(0, "alfa", nominal_time=int(now.timestamp()), key=str(days))
        seen += [(days, one) for one in told(settings, store, catalog, now) if "brav" in one]
    assert seen == [(7, "ended radar_silent brav")]


def test_a_poll_may_fail_once(live, catalog, store, settings):
    live.good_day()
    live.feed(fault="timed out", polled=NOW - MINUTE)
    assert told(settings, store, catalog) == []


def test_nothing_is_asked_of_a_domain_that_is_not_live(live, catalog, store, settings):
    live.issued(500)
    assert told(settings, store, catalog) == []


def test_a_full_disk_has_a_limit_to_raise_and_one_to_end(catalog, store, root, monkeypatch):
    usage = namedtuple("usage", "total used free")
    seen = []
    for free in (5.1, 4.9, 5.5, 6.1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**11, 0, int(free * 10**9)))
        settings = settings_for(root, DOMAIN)
        seen.append(told(settings, store, catalog))
    assert seen == [[], ["raised low_disk"], [], ["ended low_disk"]]


@pytest.mark.parametrize(
    ("day", "month", "levels"),
    [((0.40, 30), (0.50, 300), "good"), ((0.34, 30), (0.50, 300), "bad"), ((0.38, 30), (0.50, 300), "unclear"),
     ((0.10, 23), (0.50, 300), "good"), ((0.10, 30), (0.50, 119), "good"), ((float("nan"), 30), (0.5, 300), "good")],
)  # fmt: skip
def test_scores_that_fell_need_enough_rain(day, month, levels):
    skills = (Skill(csi, "optical_flow", 0.3, rainy, 60, 0.5) for csi, rainy in (day, month))
    (found,) = alert_rules.fallen_scores(DOMAIN, *skills, Alerts())
    assert found.level == levels
    if levels == "bad":
        assert "was 0.34 in the last 24 hours and 0.50 in 30 days; optical_flow 0.30 and 0.30" in found.text


def test_the_skill_of_a_day_is_that_of_its_verification(root, store, catalog):
    domain = synthetic_domain(model="optical_flow")
    settings = settings_for(root, domain)
    operations.run(settings, "small", T0, T0)
    end = T0 + 4 * CYCLE
    operations.ingest(settings, "small", T0, end, end)
    operations.verify(settings, "small", None, None, end)
    day, month = lately_and_before(domain, store, catalog, end)
    (verified,) = read_period(store, catalog, domain, T0, end)
    hits, misses, alarms = (verified.total[name][0, 3, 0, 0] for name in ("hits", "misses", "false_alarms"))
    assert day == month and day.csi == pytest.approx(hits / (hits + misses + alarms)) and 0 < day.csi < 1
    assert (day.rainy, day.lead_minutes, day.threshold_mm_h, day.other) == (1, 40, 0.5, "last_frame")
    assert not np.isnan(day.csi_other)
    # one forecast is too few to raise anything
    assert [f.level for f in alerts._findings(settings, store, catalog, end) if f.kind == "fallen_scores"] == ["good"]
    path = root / catalog.read(sa.select(tables.scores.c.path))[0]["path"]
    path.write_bytes(b"")
    later = end + timedelta(hours=1)  # scores are read again every hour
    levels = [f.level for f in alerts._findings(settings, store, catalog, later) if f.kind == "fallen_scores"]
    assert levels == ["unclear"]  # and the other rules go on


def test_a_webhook_that_was_down_gets_everything_in_order(live, catalog, store, root, hook, caplog):  # noqa: F811
    settings = with_alerts(root, webhook=hook.address)
    live.good_day("alfa", "brav")
    hook.answer = 500
    frozen(live, True)
    with caplog.at_level("WARNING", logger="pipeline"):
        told(settings, store, catalog)
        frozen(live, False)
        silent_radar(live, True)
        told(settings, store, catalog, NOW + MINUTE)
    assert hook.got == [] and "127.0.0.1 did not take" in caplog.text and "hush" not in caplog.text
    hook.answer = 204
    assert told(settings, store, catalog, NOW + 2 * MINUTE) == []
    assert [(body["event"], body["kind"]) for body in hook.got] == [
        ("raised", "frozen_feed"), ("ended", "frozen_feed"), ("raised", "radar_silent"),
    ]  # fmt: skip
    assert hook.got[1]["text"].startswith("small: over: the feed is frozen")
    assert hook.got[2]["id"] == "nowcast.alert.small.radar_silent.brav/2026-03-01T12:07:00Z/raised"
    asked = len(hook.requests)
    told(settings, store, catalog, NOW + 3 * MINUTE)
    assert len(hook.requests) == asked


def test_events_are_emitted_once_with_the_same_resource(live, catalog, store, settings):
    emitted = []
    live.good_day("alfa", "brav")
    for bad in (True, True, False):
        silent_radar(live, bad)
        check(settings, store, catalog, NOW, lambda *event: emitted.append(event))
    assert [event[:2] for event in emitted] == [
        ("nowcast.alert.raised", "nowcast.alert.small.radar_silent.brav"),
        ("nowcast.alert.ended", "nowcast.alert.small.radar_silent.brav"),
    ]
    assert emitted[0][2]["subject"] == "brav"


def test_only_one_process_checks(live, catalog, store, settings):
    live.good_day()
    frozen(live, True)
    other = Catalog(catalog.url)
    with other.lease("alerts"):
        assert told(settings, store, catalog) == []
    other.close()
    assert told(settings, store, catalog) == ["raised frozen_feed"]


def inputs(beyond, frames=144, own=True):
    return Inputs("champion", frames, beyond, 0.4, 0.3, own)


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (inputs(0.6), "bad"),
        (inputs(0.4), "unclear"),
        (inputs(0.2), "good"),
        (inputs(1.0, frames=5), "good"),
        (None, "good"),
    ],
)
def test_rain_unlike_that_of_the_training_is_told(found, level):
    (finding,) = alert_rules.drifted_inputs(DOMAIN, found, Alerts())
    assert (finding.kind, finding.subject, finding.level) == ("drift", "inputs", level)
    assert list(alert_rules.drifted_inputs(DOMAIN, found, Alerts(drift=False))) == []


@pytest.mark.parametrize(
    ("csi", "rainy", "level"), [(0.40, 200, "bad"), (0.445, 200, "unclear"), (0.46, 200, "good"), (0.3, 60, "good")]
)
def test_a_model_that_has_become_worse_than_what_it_is_compared_with_is_told(csi, rainy, level):
    (finding,) = alert_rules.drifted_scores(DOMAIN, Skill(csi, "optical_flow", 0.45, rainy, 60, 0.5), Alerts())
    assert (finding.subject, finding.level) == ("scores", level)


def test_todays_echo_is_compared_with_that_of_the_training(root, store, catalog):
    settings = settings_for(root, synthetic_domain(model="trained"))
    operations.ingest(settings, "small", T0, T0 + timedelta(hours=5), NOW)
    domain, end = settings.domain("small"), T0 + timedelta(hours=5)
    network, card = checkpoint.load(checkpoint.PRETRAINED / "champion")
    for name, most in (("trained", 0.001), ("elsewhere", 0.9)):
        known = {"small" if name == "trained" else "far": [0.0, 0.0005, most]}
        checkpoint.save(store.models() / name, network, replace(card, training={"inputs": known}))
    found = read_inputs(domain, store, catalog, end)
    assert (found.model, found.own, found.most, found.frames) == ("trained", True, 0.001, 31)
    assert found.beyond > 0.5
    other = domain.model_copy(update={"model": "elsewhere"})
    assert (read_inputs(other, store, catalog, end).beyond, read_inputs(other, store, catalog, end).own) == (0, False)
    assert read_inputs(domain.model_copy(update={"model": "optical_flow"}), store, catalog, end) is None
    levels = {f.subject: f.level for f in alerts._findings(settings, store, catalog, end) if f.kind == "drift"}
    assert levels == {"inputs": "bad", "scores": "good"}

"""A fault of the software costs one cycle of one domain its model; a fallback serves, and the others go on."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations
from pipeline.alerts import check
from pipeline.catalog import Catalog
from pipeline.errors import SOFTWARE_FAULT
from pipeline.live import Live
from pipeline.lookout import look
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline import simulated
from tests.pipeline.cycles import STEP, T0, backfill, issue, write_model
from tests.pipeline.test_live import Office

BUGS = (IndexError("list index out of range"), TypeError("unsupported operand"), KeyError("threshold"))


def broken(bug):
    def fail(*arguments, **named):
        raise bug

    return fail


@pytest.fixture
def offices(tmp_path):
    """Two domains that forecast live by optical flow."""
    office = Office(tmp_path, "small", "other", model="optical_flow")
    for domain in ("small", "other"):
        office.history(domain)
        for n in range(2):
            office.comes(T0 + n * STEP, domain=domain)
    return office


@pytest.mark.parametrize("bug", BUGS)
def test_a_method_with_a_bug_leaves_its_place_to_the_next_one(settings, monkeypatch, bug):
    """It left the batch and the process, and every restart met it again."""
    from models.networks.encoder_forecaster import EncoderForecaster

    monkeypatch.setattr(EncoderForecaster, "forward", broken(bug))
    report = backfill(settings)
    assert report.methods == {"optical_flow": 1}
    (problem,) = report.problems
    assert SOFTWARE_FAULT in problem and type(bug).__name__ in problem and "test_isolation.py:" in problem
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert row["reason"] in problem and "forecaster.py:" in row["reason"]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_choice_of_the_fallback_costs_that_cycle_and_is_its_reason(settings, monkeypatch, bug):
    from pipeline import nowcast

    real = nowcast.with_fallbacks

    def fail_once(item, *arguments):
        if item[1].reference_time == T0:
            raise bug
        return real(item, *arguments)

    monkeypatch.setattr(nowcast, "with_fallbacks", fail_once)
    report = operations.backfill(settings, "small", T0, T0 + STEP, NOW)
    assert report.cycles == {"published": 1, "skipped": 1}
    rows = Catalog(settings.catalog).read(sa.select(tables.cycles).order_by(tables.cycles.c.reference_time))
    assert rows[0]["state"] == "skipped" and SOFTWARE_FAULT in rows[0]["reason"]
    assert [entry["event"] for entry in Store(settings.root).read_journal()] == ["skipped"]
    monkeypatch.undo()
    assert operations.backfill(settings, "small", T0, T0 + STEP, NOW).cycles == {"published": 1, "unchanged": 1}


def test_a_model_that_cannot_be_built_leaves_its_place(root, tmp_path, monkeypatch):
    settings = settings_for(root, synthetic_domain(model=write_model(tmp_path / "tiny")))
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    monkeypatch.setattr("models.checkpoint.load", broken(AttributeError("no such layer")))
    (made,) = issue(settings, T0)
    assert (made.state, made.method) == ("published", "optical_flow")
    assert "tiny cannot be loaded: a fault of the software: AttributeError: no such layer" in made.reason


@pytest.mark.parametrize("work", ["_due", "_poll", "_give_up"])
def test_one_domain_with_a_bug_does_not_stop_the_live_process(offices, monkeypatch, work):
    """Also not one in the work beside the forecasts: what is polled, due, or given up."""
    real, reported = getattr(Live, work), []

    def fail(self, feed, *arguments):
        if feed.domain.name == "small":
            raise IndexError("a bug")
        return real(self, feed, *arguments)

    monkeypatch.setattr(Live, work, fail)
    offices.live._report = lambda domain, fault: reported.append((domain, fault))
    offices.run(T0 + 3 * STEP + timedelta(seconds=1600))
    issued = [row for (time, _), row in offices.cycles("other").items() if time >= T0]
    assert [row["state"] for row in issued[:2]] == ["published", "published"] and len(issued) >= 4
    assert {domain for domain, _ in reported} == {"small"}
    assert "IndexError: a bug" in reported[0][1]


def test_a_bug_in_a_table_of_places_costs_the_places_alone(root, monkeypatch):
    domain = synthetic_domain(model="last_frame", points={"home": (5.0, 51.0)})
    settings = settings_for(root, domain)
    monkeypatch.setattr("pipeline.publish.forecasts.describe", broken(IndexError("row 7")))
    report = backfill(settings)
    assert report.cycles == {"published": 1}
    assert any("no forecast of places" in problem and "IndexError: row 7" in problem for problem in report.problems)


def test_a_bug_in_verification_costs_one_forecast(settings, monkeypatch):
    from pipeline.verification import compared

    real, seen = compared.of_product, []

    def fail_once(*arguments):
        seen.append(1)
        if len(seen) == 1:
            raise AttributeError("a bug")
        return real(*arguments)

    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 5 * STEP, NOW)
    issue(settings, T0, T0 + STEP)
    monkeypatch.setattr(compared, "of_product", fail_once)
    report = operations.verify(settings, "small", T0, T0 + STEP, NOW)
    assert report.verify.scored == 1 and "AttributeError: a bug" in report.problems[0]
    assert operations.verify(settings, "small", T0, T0 + STEP, NOW).verify.scored == 1


def test_a_bug_in_a_page_or_a_message_is_one_alert_and_the_rest_is_done(offices, monkeypatch):
    offices.run(T0 + timedelta(minutes=3))
    monkeypatch.setattr("pipeline.lookout.deliver", broken(KeyError("webhook")))
    events = []
    for _ in range(3):
        look(
            offices.settings, offices.store, offices.catalog, offices.clock, lambda *event: events.append(event),
            {"small": (offices.clock.now(), "a fault of the software: TypeError: live")},
        )  # fmt: skip
    faults = [event for event in events if event[2]["kind"] == "software_fault"]
    about = sorted((event[2]["domain"], event[2]["subject"]) for event in faults)
    assert about == [("other", "warnings"), ("small", "live"), ("small", "warnings")]
    assert (offices.settings.root / "status/index.html").is_file()


def test_cycles_that_met_a_bug_are_one_alert_that_ends_a_day_later(settings, catalog, store):
    live = simulated.Live(catalog)
    live.good_day()
    assert "software_fault" not in json.dumps([told.kind for told in check(settings, store, catalog, simulated.NOW)])
    for before in (1, 2, 3):
        live.issued(before, "optical_flow", f"champion failed: {SOFTWARE_FAULT}: IndexError: 7 (models/x.py:1 f)")
    raised = [told for told in check(settings, store, catalog, simulated.NOW) if told.kind == "software_fault"]
    assert [told.event for told in raised] == ["raised"] and "3 cycles of the last day" in raised[0].text
    assert not [told for told in check(settings, store, catalog, simulated.NOW) if told.kind == "software_fault"]
    later = check(settings, store, catalog, simulated.NOW + timedelta(days=1))
    assert [told.event for told in later if told.kind == "software_fault"] == ["ended"]

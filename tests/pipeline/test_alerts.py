"""Warnings: when they come and go, and that telling of them never harms a forecast."""

import json
import shutil
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import operations
from pipeline.catalog import Catalog
from pipeline.place_settings import WarningRule
from pipeline.storage import Store
from pipeline.warnings import watch as watching
from pipeline.warnings import webhook
from pipeline.warnings.alerts import State, next_state
from pipeline.warnings.watch import deliver, watch
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0

RULE = WarningRule(place="home", amount_mm=10, minutes=30)


def events(*amounts, state=State(), start=T0) -> tuple[State, list[str]]:
    """What a series of cycles tells; one letter or more per cycle with a message."""
    told = []
    for n, amount in enumerate(amounts):
        state, messages = next_state(state, [RULE], {RULE.key: amount}, start + n * STEP)
        told += [f"{message.event} {n}" for message in messages]
    return state, told


@pytest.mark.parametrize(
    ("amounts", "told"),
    [
        ([9.99, 10, 12, 30], ["raised 1"]),
        ([10, 8, 9, 7, 9, 7.0], ["raised 0"]),
        ([10, 6.9, 7.0, 6.9, 6.9], ["raised 0", "cleared 4"]),
        ([10, 6, None, 6, 6], ["raised 0", "cleared 3"]),
        ([10, 6, 10, 6, 6, 10], ["raised 0", "cleared 4", "raised 5"]),
        ([None, None, 0], []),
    ],
)
def test_a_warning_comes_at_its_threshold_and_goes_after_two_calm_cycles(amounts, told):
    assert events(*amounts)[1] == told


def test_cycles_that_are_not_newer_change_nothing():
    state, _ = events(10, 6)
    for when in (T0 + STEP, T0):
        assert events(0, state=state, start=when) == (state, [])
    assert events(0, state=state, start=T0 + 2 * STEP)[1] == ["cleared 0"]


def test_the_message_says_what_where_and_when():
    _, (message,) = next_state(State(), [RULE], {RULE.key: 12.43}, T0)
    assert message.text == "home: 12.4 mm in 30 minutes expected from 02:00 UTC; threshold 10 mm"
    assert message.to_json("small")["id"] == "small/home/30/10/2024-06-01T02:00:00Z/raised"


class Hook(ThreadingHTTPServer):
    """A webhook that notes what it gets, and behaves as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict] = []
        self.requests: list[str] = []
        self.answer = 204
        self.release = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/hush"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(self.path)
        if self.server.answer == "hang":
            self.server.release.wait(20)
            return
        if self.server.answer == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.release.wait(0.05):
                self.wfile.write(b"X-More: more\r\n")
            return
        self.send_response(self.server.answer)
        if self.server.answer in (302, 307):
            self.send_header("Location", self.server.other)
        self.end_headers()
        if self.server.answer == 204:
            self.server.got.append(body)

    def do_GET(self) -> None:
        self.server.requests.append(f"GET {self.path}")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments) -> None:
        return


@contextmanager
def serving():
    hook = Hook()
    thread = threading.Thread(target=hook.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.release.set()
        hook.shutdown()
        hook.server_close()


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.4)
    with serving() as hook:
        yield hook


@pytest.mark.parametrize("answer", [500, "hang", "endless"])
def test_a_webhook_that_fails_is_asked_twice_and_named_without_its_secret(hook, answer):
    hook.answer = answer
    started = time.monotonic()
    reason = webhook.post(hook.address, {"text": "x"})
    assert reason and "hush" not in reason
    assert len(hook.requests) == webhook.TRIES and time.monotonic() - started < 10
    assert webhook.host_of(hook.address) == "127.0.0.1"


@pytest.mark.parametrize("answer", [302, 307])
def test_redirects_are_not_followed(hook, answer):
    with serving() as other:
        hook.answer, hook.other = answer, other.address
        assert "redirect" in webhook.post(hook.address, {"text": "x"})
        assert other.requests == [] and all(not request.startswith("GET") for request in hook.requests)


def test_nobody_listening_is_a_reason():
    assert "refused" in webhook.post("http://127.0.0.1:9/services/hush", {"text": "x"})


def cycle(store, domain, number: int, amount: float | None, late: timedelta = timedelta(0)):
    """Publish the place forecasts of a cycle and watch them; returns what was told."""
    path = store.root / f"{number}.places.json"
    document = {
        "reference_time": (T0 + number * STEP).isoformat(),
        "issue_time": (T0 + number * STEP + late).isoformat(),
        "places": [{"name": "home", "amount_mm": {"30": amount}}],
    }
    path.write_text(json.dumps(document))
    catalog = Catalog(f"sqlite:///{store.root / 'catalog.sqlite'}")
    try:
        told = watch(domain, store, path).warnings
        deliver(domain, store, catalog)
        return told
    finally:
        catalog.close()


def test_a_forecast_that_comes_when_the_time_of_a_rule_is_over_changes_nothing(store):
    assert cycle(store, watched(), 0, 12, late=timedelta(minutes=30)) == ()
    assert len(cycle(store, watched(), 1, 12, late=timedelta(minutes=29))) == 1
    assert cycle(store, watched(), 2, 0, late=timedelta(hours=1)) == ()


def watched(address: str | None = None, **changes):
    rule = {"place": "home", "amount_mm": 10, "minutes": 30, "webhook": address, **changes}
    return synthetic_domain(points={"home": (5.0, 51.0)}, warnings=[rule])


def lines(store) -> list[dict]:
    path = store.root / "warnings/small.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_message_is_recorded_and_sent_once(store, hook):
    domain = watched(hook.address)
    told = [cycle(store, domain, number, amount) for number, amount in ((0, 12), (0, 12), (1, 3), (2, 3), (1, 30))]
    assert [len(one) for one in told] == [1, 0, 0, 1, 0]
    assert [entry["event"] for entry in lines(store)] == ["raised", "cleared"]
    assert hook.got == lines(store)
    assert "hush" not in "".join(p.read_text() for p in (store.root / "warnings").iterdir())


def test_a_message_that_was_not_taken_is_sent_with_the_next_cycle_and_in_order(store, hook, caplog):
    domain = watched(hook.address)
    hook.answer = 500
    with caplog.at_level("INFO", logger="pipeline"):
        for number, amount in enumerate((12, 3, 3)):
            cycle(store, domain, number, amount)
        assert hook.got == []
        hook.answer = 204
        cycle(store, domain, 3, None)
    assert [body["event"] for body in hook.got] == ["raised", "cleared"]
    assert "127.0.0.1" in caplog.text and "hush" not in caplog.text
    asked = len(hook.requests)
    cycle(store, domain, 4, None)
    assert len(hook.requests) == asked


def test_no_more_messages_wait_than_are_of_use(store, hook, monkeypatch):
    monkeypatch.setattr(watching, "MOST_PENDING", 2)
    hook.answer = 500
    for number, amount in enumerate((12, 3, 3, 12)):
        cycle(store, watched(hook.address), number, amount)
    hook.answer = 204
    cycle(store, watched(hook.address), 4, 12)
    assert [body["event"] for body in hook.got] == ["cleared", "raised"]


@pytest.mark.parametrize("content", ["", "{}", '{"format_version": 2}', '{"format_version": 1, "rules": 3}', "[1]"])
def test_a_damaged_state_begins_anew_and_says_so(store, caplog, content):
    cycle(store, watched(), 0, 12)
    (store.root / "warnings/small.json").write_text(content)
    with caplog.at_level("WARNING", logger="pipeline"):
        assert len(cycle(store, watched(), 1, 12)) == 1
    assert "damaged" in caplog.text
    assert cycle(store, watched(), 2, 12) == ()


def test_damaged_place_forecasts_are_no_forecast(store, caplog):
    cycle(store, watched(), 0, 12)
    before = (store.root / "warnings/small.json").read_bytes()
    (store.root / "x.json").write_text('{"reference_time": "2024-06-01T03:00Z", "places": [7]}')
    with caplog.at_level("WARNING", logger="pipeline"):
        assert watch(watched(), store, store.root / "x.json").warnings == ()
    assert "x.json" in caplog.text and (store.root / "warnings/small.json").read_bytes() == before


def test_a_warning_that_the_settings_no_longer_name_is_forgotten(store, hook):
    hook.answer = 500
    cycle(store, watched(hook.address), 0, 12)
    hook.answer = 204
    assert len(cycle(store, watched(hook.address, amount_mm=11), 1, 12)) == 1
    assert [body["threshold_mm"] for body in hook.got] == [11]


def wettest(root) -> tuple[float, float]:
    """Longitude and latitude of the cell with most rain in the product of T0."""
    import xarray as xr

    settings = settings_for(root, synthetic_domain(model="optical_flow"))
    report = operations.run(settings, "small", T0, T0 + timedelta(days=1))
    with xr.open_dataset(root / report.products[0], engine="h5netcdf") as data:
        amount = data.rainfall_amount[0].where(data.rainfall_amount[0] < 30)
        best = amount.argmax(("y", "x"))
        cell = amount[best]
        assert float(cell) > 1
        return float(cell.lon), float(cell.lat)


def test_only_issued_cycles_warn_and_the_report_says_it(root, tmp_path, hook):
    point = wettest(tmp_path / "first")
    rule = {"place": "home", "amount_mm": 1, "minutes": 30, "webhook": hook.address}
    domain = synthetic_domain(model="optical_flow", points={"home": point}, warnings=[rule])
    settings = settings_for(root, domain)
    old = operations.run(settings, "small", T0, T0 + timedelta(days=1))
    assert old.cycles == {"published": 1} and old.notes == [] and not (root / "warnings").exists()
    hook.answer = "hang"
    new = operations.run(settings, "small", T0, T0)
    assert new.cycles == {"published": 1}
    (problem,) = new.problems  # the command then ends with 3
    assert problem.startswith("the webhook at 127.0.0.1 did not take small/home/30/1/") and "tries again" in problem
    (note,) = new.notes
    assert note.startswith("warning raised: home: ") and "threshold 1 mm" in note
    # the cycle runs again: the product stands, and the message that is still to be sent goes out
    hook.answer = 204
    again = operations.run(settings, "small", T0, T0)
    assert again.cycles == {"unchanged": 1} and again.notes == []
    assert [body["place"] for body in hook.got] == ["home"] and hook.got[0]["method"] == "optical_flow"


def test_a_killed_process_loses_no_warning(root, tmp_path):
    point = wettest(tmp_path / "first")
    rule = {"place": "home", "amount_mm": 1, "minutes": 30}
    settings = settings_for(root, synthetic_domain(model="optical_flow", points={"home": point}, warnings=[rule]))
    operations.run(settings, "small", T0, T0)
    shutil.rmtree(root / "warnings")  # as if the process had ended right after the product was recorded
    assert len(operations.run(settings, "small", T0, T0).notes) == 1
    assert len(lines(Store(root))) == 1


def reissued(state, amount, time, revision):
    state, messages = next_state(state, [RULE], {RULE.key: amount}, time, revision)
    return state, [message.event for message in messages]


def test_a_reissue_raises_what_the_first_forecast_did_not():
    """Its reference time is not newer, and so it changed nothing."""
    state, _ = events(2)
    state, told = reissued(state, 25, T0, 2)
    assert told == ["raised"] and state.revision == 2
    for revision in (1, 2):  # neither is newer
        assert reissued(state, 30, T0, revision) == (state, [])
    assert events(8, start=T0 + STEP, state=state)[1] == []


def test_a_reissue_counts_in_place_of_its_cycle():
    raised, _ = events(10)
    calm_once, _ = events(2, start=T0 + STEP, state=raised)
    again, told = reissued(calm_once, 3, T0 + STEP, 2)
    assert told == []  # the same cycle is not calm twice
    assert events(2, start=T0 + 2 * STEP, state=again)[1] == ["cleared 0"]
    not_calm, _ = reissued(calm_once, 8, T0 + STEP, 2)
    assert events(2, start=T0 + 2 * STEP, state=not_calm)[1] == []
    ended, told = events(2, start=T0 + 2 * STEP, state=calm_once)
    assert told == ["cleared 0"]
    back, told = reissued(ended, 8, T0 + 2 * STEP, 2)  # in place of the first it would never have ended
    assert told == ["raised"] and back.rules[RULE.key].raised_at == T0
    assert reissued(ended, 1, T0 + 2 * STEP, 2)[1] == []
    held, _ = events(9, start=T0 + 2 * STEP, state=calm_once)
    assert reissued(held, 1, T0 + 2 * STEP, 2)[1] == ["cleared"]  # as the first would have, had it known


def test_messages_of_a_reissue_have_ids_of_their_own():
    state, (first,) = next_state(State(), [RULE], {RULE.key: 12.0}, T0)
    state, _ = next_state(state, [RULE], {RULE.key: 1.0}, T0 + STEP)
    state, (ended,) = next_state(state, [RULE], {RULE.key: 1.0}, T0 + 2 * STEP)
    _, (again,) = next_state(state, [RULE], {RULE.key: 12.0}, T0 + 2 * STEP, 2)
    ids = [message.to_json("small")["id"] for message in (first, ended, again)]
    assert len(set(ids)) == 3 and "/r2/" in ids[2]

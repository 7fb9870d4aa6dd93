"""One run of every flow against Prefect's own test server."""

import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.operations import Report
from tests.flows.test_cli import SMALL, nowcast

START, END = datetime(2024, 6, 1, 2, 0, tzinfo=UTC), datetime(2024, 6, 1, 2, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "nowcast.toml"
    path.write_text(SMALL)
    return str(path)


def artifacts() -> dict[str, str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {a.key: str(a.data) for a in client.read_artifacts()}


def runs_named(name: str) -> list:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(name={"any_": [name]}))


def logs_of(run) -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter

    with get_client(sync_client=True) as client:
        return [line.message for line in client.read_logs(LogFilter(flow_run_id={"any_": [run.id]}))]


def test_every_flow_once(prefect, config):
    from flows.backfill import backfill
    from flows.ingest import ingest
    from flows.nowcast import nowcast
    from flows.report import report
    from flows.retrain import retrain
    from flows.train import train
    from flows.verify import verify
    from pipeline.operations import TrainingRequest

    [taken] = ingest("small", START, END, config=config)
    assert taken.ingest.framed == 2
    [made] = nowcast("small", START, config=config)
    assert made.cycles == {"published": 1} and made.methods == {"optical_flow": 1}
    [done] = backfill("small", START, END, config=config)
    assert done.cycles == {"unchanged": 1, "published": 1}
    assert done.verify.scored == 2
    [verified] = verify(config=config)  # of all domains
    assert verified.verify.unchanged == 2
    [page] = report("small", config=config)
    assert page.page.suffix == ".html"
    ingest("small", datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 2, 12, tzinfo=UTC), config=config)
    request = TrainingRequest(name="tiny", steps=1, crop=32, batch=1, lead_frames=2)
    assert train(["small"], request, config=config).folder.name == "tiny"
    small = {f"retrain.{key}": str(value) for key, value in {
        "steps": 1, "batch": 1, "crop": 32, "fewest_times": 5, "gap_minutes": 20, "forecasts": 4, "window_days": 0.5,
    }.items()}  # fmt: skip
    [compared] = retrain("small", config=config, changes=small)
    assert compared.state in {"rejected", "not enough evidence"} and compared.page.is_file()
    assert [one.state for one in retrain(online=True, config=config)] == ["off"]
    left = artifacts()
    assert compared.reason in left["retrain-small"] and compared.challenger in left["retrain-small"]
    assert {"ingest-small", "nowcast-small", "backfill-small", "verify-small", "report-small", "train-tiny"} <= set(
        left
    )
    assert float(left["backfill-progress-small"]) == 100
    assert "2 forecasts scored" in left["backfill-small"] and "last_frame" in left["report-small"]


def test_the_view_flow_says_where_the_page_lies(prefect, config):
    from pipeline.viewer import page

    if not (page.HERE / "vendor" / ".installed").is_file():
        pytest.skip("the map library is not installed: `make viewer` (Debian: apt-get install npm)")
    from flows.nowcast import nowcast
    from flows.view import view

    nowcast("small", START, config=config)
    [written] = view("small", START, config=config)
    assert written.page.is_file() and written.method == "optical_flow"
    assert str(written.page) in artifacts()["view-small"]
    shown = written.page.parent / "viewer.js"
    shown.write_text("changed")
    view("small", START, config=config, only_if_new=True)
    assert shown.read_text() == "changed"  # nothing was new, so nothing was written


def test_a_domain_that_fails_does_not_stop_the_others(prefect, config):
    from flows.domains import for_domains
    from pipeline.errors import NotForecast
    from pipeline.settings import load

    names = ("bug", "fine", "nothing", "partly")
    settings = load(Path(config))
    settings = settings.model_copy(update={"domains": dict.fromkeys(names, settings.domain("small"))})

    def work(name):
        if name == "bug":
            raise KeyError("postgresql://u:hush@host/x")
        if name == "nothing":
            raise NotForecast("no forecast yet")
        return Report(name, problems=["a file was unusable"] * (name == "partly"))

    state = for_domains(settings, None, work)
    assert state.is_failed() and state.message.startswith("bug: KeyError") and "partly: a file" in state.message
    assert "hush" not in state.message and "nothing" not in state.message
    assert [report.domain for report in state.data] == ["fine", "partly"]
    assert for_domains(settings, "fine", work) == [Report("fine")]
    with pytest.raises(KeyError):  # a person who named the domain gets its error
        for_domains(settings, "bug", work)


def test_a_run_that_did_not_do_all_is_failed_and_says_what(prefect, tmp_path):
    from flows.ingest import ingest

    other = SMALL[SMALL.index("[domains.small]") :].replace("small", "other").split("grid =")[0] + (
        "grid = { native = true }\nsource = { kind = 'gridded', reader = 'odim_comp', uri = 'in' }\n"
    )
    (tmp_path / "nowcast.toml").write_text(SMALL + other)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "comp_20240601T020000Z.h5").write_bytes(b"broken")
    state = ingest(None, START, END, config=str(tmp_path / "nowcast.toml"), return_state=True)
    assert state.name == "Failed" and "other: comp_20240601T020000Z.h5" in state.message
    other_done, small_done = state.result(raise_on_failure=False)
    assert (other_done.ingest.framed, small_done.ingest.framed) == (0, 2)


def test_no_forecast_yet_is_no_failure(prefect, config, tmp_path):
    from flows.report import report

    assert report(period="day", config=config, changes={"root": str(tmp_path)}) == []


def test_the_command_prints_the_same_through_a_server(prefect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gridded = SMALL.split("grid =")[0] + (
        "grid = { native = true }\nsource = { kind = 'gridded', reader = 'odim_comp', uri = 'in' }\n"
    )
    (tmp_path / "nowcast.toml").write_text(gridded)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "comp_20240601T020000Z.h5").write_bytes(b"broken")
    done = nowcast(f"ingest small --json --set prefect_api_url={prefect}")
    report = json.loads(done.stdout)
    assert done.exit_code == 3 and "comp_20240601T020000Z.h5" in report["problems"][0]
    assert nowcast(f"report small --set prefect_api_url={prefect}").exit_code == 2  # an error stays what it is


def test_a_batch_of_the_live_process_is_a_run_with_its_log(prefect, config):
    import logging

    from flows.live import Recorder
    from pipeline.publish import Outcome
    from pipeline.settings import load

    settings = load(Path(config), {"prefect_api_url": prefect})
    recorder = Recorder(settings)
    logger = logging.getLogger("pipeline.somewhere")
    level = logging.getLogger("pipeline").level
    logging.getLogger("pipeline").setLevel(logging.INFO)
    try:
        logger.info("a line of %s", "ours")
        recorder.record([Outcome(START, "skipped", reason="no frame", domain="small")])
        recorder._waiting.join()
    finally:
        recorder.close()
        logging.getLogger("pipeline").setLevel(level)
    [run] = runs_named("2024-06-01T02:00:00Z small")
    assert run.state_name == "Failed" and "no frame" in run.state.message
    latest = time.monotonic() + 20  # log lines go to the server every two seconds
    while "a line of ours" not in (lines := logs_of(run)) and time.monotonic() < latest:
        time.sleep(0.2)
    assert "a line of ours" in lines
    assert "no frame" in artifacts()["cycle"]


def test_a_server_that_hangs_delays_no_forecast(config):
    from flows.live import CLOSE_S, Recorder
    from pipeline.publish import Outcome
    from pipeline.settings import load

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        recorder = Recorder(load(Path(config), {"prefect_api_url": url}))
        started = time.monotonic()
        for _ in range(300):
            recorder.record([Outcome(START, "published", domain="small")])
        assert time.monotonic() - started < 0.5
        recorder.close()
        assert time.monotonic() - started < CLOSE_S + 1


def test_a_step_is_tried_again_only_where_the_world_can_fail(prefect):
    from prefect import flow

    from flows.prefect_link import as_task
    from pipeline.errors import StoreUnavailable

    tried = []

    def fails(error):
        tried.append(error)
        raise error

    @flow
    def run(error):
        as_task(fails).with_options(retry_delay_seconds=0, retry_jitter_factor=None)(error)

    for error, times in ((ValueError("bug"), 1), (StoreUnavailable("gone"), 3)):
        tried.clear()
        with pytest.raises(type(error)):
            run(error)
        assert len(tried) == times


def test_no_server_is_seen_quickly():
    from flows.prefect_link import server_answers

    started = time.monotonic()
    assert not server_answers("http://127.0.0.1:9/api")
    assert not server_answers("not a url")
    assert time.monotonic() - started < 2

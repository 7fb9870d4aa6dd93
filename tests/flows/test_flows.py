"""One run of every flow against Prefect's own test server."""

from datetime import UTC, datetime

import pytest

from tests.conftest import NOW  # noqa: F401 - the harness starts after the shared fixtures
from tests.flows.test_cli import SMALL

START, END = datetime(2024, 6, 1, 2, 0, tzinfo=UTC), datetime(2024, 6, 1, 2, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    import os

    home = tmp_path_factory.mktemp("prefect")
    os.environ.update(PREFECT_HOME=str(home), DO_NOT_TRACK="1", PREFECT_SERVER_ANALYTICS_ENABLED="false")
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "nowcast.toml"
    path.write_text(SMALL)
    return str(path)


def artifacts() -> dict[str, str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {a.key: str(a.data) for a in client.read_artifacts()}


def test_every_flow_once(prefect, config):
    from flows.backfill import backfill
    from flows.ingest import ingest
    from flows.nowcast import nowcast
    from flows.report import report
    from flows.train import train
    from flows.verify import verify
    from pipeline.operations import TrainingRequest

    taken = ingest("small", START, END, config=config)
    assert taken.ingest.framed == 2
    made = nowcast("small", START, config=config)
    assert made.cycles == {"published": 1} and made.methods == {"optical_flow": 1}
    done = backfill("small", START, END, config=config)
    assert done.cycles == {"unchanged": 1, "published": 1}
    assert done.verify.scored == 2
    assert verify("small", config=config).verify.unchanged == 2
    assert report("small", config=config).page.suffix == ".html"
    ingest("small", datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 2, 12, tzinfo=UTC), config=config)
    request = TrainingRequest(name="tiny", steps=1, crop=32, batch=1, lead_frames=2)
    assert train(["small"], request, config=config).folder.name == "tiny"
    left = artifacts()
    assert {"ingest-small", "nowcast-small", "backfill-small", "verify-small", "report-small"} <= set(left)
    assert "2 forecasts scored" in left["backfill-small"] and "last_frame" in left["report-small"]


def test_the_view_flow_says_where_the_page_lies(prefect, config):
    from pipeline.viewer import page

    if not (page.HERE / "vendor" / ".installed").is_file():
        pytest.skip("the map library is not installed: `make viewer` (Debian: apt-get install npm)")
    from flows.nowcast import nowcast
    from flows.view import view

    nowcast("small", START, config=config)
    written = view("small", START, config=config)
    assert written.page.is_file() and written.method == "optical_flow"
    assert str(written.page) in artifacts()["view-small"]


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
    import time

    from flows.prefect_link import server_answers

    started = time.monotonic()
    assert not server_answers("http://127.0.0.1:9/api")
    assert not server_answers("not a url")
    assert time.monotonic() - started < 2

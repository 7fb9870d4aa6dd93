"""Prefect's own test server, one for all tests of flows."""

import os

import pytest


@pytest.fixture(scope="session")
def prefect(tmp_path_factory):
    """Prefect's test server; gives the address of its API."""
    home = tmp_path_factory.mktemp("prefect")
    os.environ.update(PREFECT_HOME=str(home), DO_NOT_TRACK="1", PREFECT_SERVER_ANALYTICS_ENABLED="false")
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield PREFECT_API_URL.value()

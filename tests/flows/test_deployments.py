"""What `infra/prefect.yaml` deploys: every flow, with parameters that exist, at the times the documentation says."""

import inspect
import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
import yaml

from tests.conftest import PROJECT

FILE = PROJECT / "infra" / "prefect.yaml"
DEPLOYMENTS = yaml.safe_load(FILE.read_text())["deployments"]
NAMES = [one["name"] for one in DEPLOYMENTS]


def flow_of(entrypoint: str):
    from importlib import import_module

    module, _, name = entrypoint.partition(":")
    return getattr(import_module(module), name)


def test_every_flow_has_a_deployment_and_every_deployment_a_flow():
    # a flow made inside a function is a part of another process, such as the batches of the live one
    in_files = {
        f"flows.{file.stem}:{name}"
        for file in (PROJECT / "flows").glob("*.py")
        for name in re.findall(r"^@flow\(.*\)\ndef (\w+)", file.read_text(), re.MULTILINE)
    }
    assert in_files == {one["entrypoint"] for one in DEPLOYMENTS}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=NAMES)
def test_a_deployment_fits_its_flow(one):
    from prefect import Flow

    flow = flow_of(one["entrypoint"])
    assert isinstance(flow, Flow)
    parameters = inspect.signature(flow.fn).parameters
    given = one.get("parameters", {})
    assert set(given) <= set(parameters)
    if one.get("schedules"):  # nobody is there to fill in the rest
        assert not {n for n, p in parameters.items() if p.default is inspect.Parameter.empty} - set(given)
        flow.validate_parameters(given)
    assert one["description"] and one["tags"]
    assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert one["work_pool"]["name"] == "nowcast"
    assert "config" not in given, "the worker's NOWCAST_CONFIG says which settings"


def schedule_text(schedule: dict) -> str:
    if "interval" in schedule:
        return f"every {schedule['interval'] // 60} minutes"
    return f"`{schedule['cron']}`" + ("" if schedule.get("active", True) else ", not active")


def test_the_table_of_the_documentation_says_the_schedules():
    text = (PROJECT / "docs" / "operation.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+/[a-z-]+)` \| ([^|]+?) \|", text, re.MULTILINE))
    wanted = {
        f"{one['entrypoint'].split(':')[1]}/{one['name']}": schedule_text(one["schedules"][0])
        if one.get("schedules")
        else "by hand"
        for one in DEPLOYMENTS
    }
    assert rows == wanted


def test_the_file_deploys_and_the_server_schedules_it(prefect, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Pending, Running

    from flows.up import _crash_lost_runs

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="nowcast", type="process"), overwrite=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect,
        "PREFECT_HOME": str(tmp_path),
        "PYTHONPATH": str(PROJECT),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        made = {one.name: one for one in client.read_deployments()}
        assert set(made) >= set(NAMES)
        assert not made["backfill"].schedules
        assert made["retrain"].schedules[0].active
        drift = next(one for one in client.read_automations() if one.name.startswith("retrain"))
        assert not drift.enabled and drift.trigger.match.root == {"prefect.resource.id": "nowcast.alert.*.drift.*"}
        watchdog = made["watchdog"]
        assert watchdog.schedules[0].schedule.interval == timedelta(minutes=5)
        assert watchdog.concurrency_options.collision_strategy.value == "CANCEL_NEW"
        assert watchdog.pull_steps in (None, []) and watchdog.path in (None, "", ".")
    # the server's scheduler: under SQLAlchemy 2.1 it fails, and nothing but its own log says so
    with get_client(sync_client=True) as client:
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": watchdog.id}, json={"min_runs": 3})
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [watchdog.id]}))
        assert len(runs) >= 3 and {run.state_name for run in runs} == {"Scheduled"}
        # a worker that was killed leaves a run that keeps the deployment's only slot
        client.set_flow_run_state(runs[0].id, Pending())
        client.set_flow_run_state(runs[0].id, Running())
        _crash_lost_runs(prefect)
        assert client.read_flow_run(runs[0].id).state_name == "Crashed"
        assert client.set_flow_run_state(runs[1].id, Pending()).state.is_pending(), "the slot is free again"
        client.delete_deployment(watchdog.id)

"""What stands in `infra/` fits the code: commands exist, variables are settings, ports are those of the loopback."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.settings import RESERVED_ENVIRONMENT, load
from tests.conftest import PROJECT

INFRA = PROJECT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((INFRA / "kubernetes" / "worker.yaml").read_text()))
TEXTS = [path for path in INFRA.rglob("*") if path.is_file() and "domains" not in path.parts]


def commands() -> set[str]:
    from flows.cli import app

    return {command.callback.__name__ for command in app.registered_commands if command.callback}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path):
    for name, value in re.findall(r"\b(NOWCAST_[A-Z_0-9]+)\b(?:[=:] ?\"?([^\s\"]*))?", path.read_text()):
        if name not in RESERVED_ENVIRONMENT:
            left_out = "sqlite:///x" if "$" in value or name == "NOWCAST_CATALOG" else "1"
            load(None, environment={name: left_out if "$" in value else value or left_out})


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_command_of_ours_exists(path: Path):
    said = re.findall(r"(?:=.*bin/nowcast |`nowcast |CMD \[\"|command: \[nowcast, )([a-z]+)\b", path.read_text())
    assert set(said) <= commands() | {"catalog"}, path


def test_containers_of_compose_run_commands_that_exist_and_listen_on_the_loopback_only():
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if service.get("image", "").startswith("nowcast:"):
            if service.get("entrypoint") is None:
                assert service["command"][0] in commands(), name
            else:
                assert service["entrypoint"] == ["prefect"]
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
        for other in service.get("depends_on", {}):
            assert other in COMPOSE["services"]
    text = (INFRA / "compose.yaml").read_text()
    assert not re.search(r"PASSWORD: (?!\$\{)", text), "passwords come from nowcast.env"


def test_the_deployment_file_of_the_containers_is_in_the_image():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    assert {"models", "pipeline", "flows", "infra", "constraints.txt"} <= sources
    assert all((PROJECT / name).exists() for name in sources)
    command = COMPOSE["services"]["deployments"]["command"]
    assert (PROJECT / command[command.index("--prefect-file") + 1]).is_file()


def test_pods_run_commands_that_exist_with_what_they_name():
    kinds = {(one["kind"], one["metadata"]["name"]): one for one in KUBERNETES}
    settings = kinds["ConfigMap", "nowcast-settings"]["data"]["nowcast.toml"]
    assert set(tomllib.loads(settings)["domains"]) == {"example"}
    for (kind, name), one in kinds.items():
        if kind != "Deployment":
            continue
        assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        pod = one["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False  # a Service named nowcast-... would set variables NOWCAST_...
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            if container.get("command", ["nowcast"]) == ["nowcast"]:
                assert container["args"][0] in commands(), name
            assert container["resources"]["requests"] and container["livenessProbe"] and container["startupProbe"]
            assert not any("secret" in str(env.get("value", "")).lower() for env in container["env"])
    assert kinds["Deployment", "nowcast-live"]["spec"]["replicas"] == 1


def test_the_example_settings_are_valid(tmp_path):
    (tmp_path / "nowcast.toml").write_text((INFRA / "nowcast.example.toml").read_text())
    settings = load(tmp_path / "nowcast.toml", environment={})
    assert set(settings.domains) == {"example"} and settings.retention.frames_days == 400
    in_pods = next(one for one in KUBERNETES if one["kind"] == "ConfigMap")["data"]["nowcast.toml"]
    (tmp_path / "pods.toml").write_text(in_pods)
    load(tmp_path / "pods.toml", environment={})


def test_the_unit_stops_later_than_up_needs():
    from flows import up

    unit = (INFRA / "systemd" / "nowcast.service").read_text()
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    needed = up.LIVE_STOP_S + up.WORKER_STOP_S + up.RUNS_STOP_S + up.SERVER_STOP_S
    assert needed < 20 < int(seconds)
    assert "KillMode=mixed" in unit  # the children would else be stopped all at once, and not in order

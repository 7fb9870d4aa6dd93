"""The command as a person and a script use it: output, JSON, exit codes."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.conftest import PROJECT

SMALL = """
root = "data"
[domains.small]
cadence_minutes = 10
lead_frames = 3
model = "optical_flow"
grid = { crs = "+proj=laea +lat_0=51 +lon_0=5 +units=m", shape = [48, 48], spacing_m = 2000, centre = [5, 51] }
source = { kind = "synthetic", seed = 21 }
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowcast.toml").write_text(SMALL)
    return tmp_path


def nowcast(line: str, **environment: str):
    # no server answers on port 9, so that a developer's own server never takes part
    environment = {"NOWCAST_PREFECT_API_URL": "http://127.0.0.1:9/api", "COLUMNS": "200", **environment}
    result = CliRunner(env=environment).invoke(app, shlex.split(line))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


PERIOD = "--from 2024-06-01T02:00Z --to 2024-06-01T02:10Z"


def test_the_whole_chain(here):
    first = nowcast(f"backfill small {PERIOD} --json")
    assert first.exit_code == 0
    report = json.loads(first.stdout)
    assert report["cycles"] == {"published": 2} and report["verify"]["scored"] == 2
    assert (here / "data" / report["products"][0]).is_file()
    assert json.loads(nowcast(f"backfill small {PERIOD} --json").stdout)["cycles"] == {"unchanged": 2}
    page = json.loads(nowcast("report small --json").stdout)
    assert Path(page["page"]).is_file() and page["csi"]
    status = json.loads(nowcast("status --json").stdout)
    assert status["holdings"][0]["forecasts"] == {"optical_flow (hindcast)": 2}
    assert status["level"] == "off" and status["domains"][0]["newest_frame"].endswith("Z")
    shown = nowcast("status").stdout
    assert "2 optical_flow" in shown and "no domain is forecast live" in shown and "at work: nobody" in shown
    written = json.loads(nowcast("status --page --json").stdout)["page"]
    assert "no domain is forecast live" in Path(written).read_text()
    rebuilt = json.loads(nowcast("catalog rebuild --json").stdout)
    assert (rebuilt["forecasts"], rebuilt["damaged"]) == (2, [])
    assert json.loads(nowcast("verify small --json").stdout)["verify"]["unchanged"] == 2  # the sums are found again


def test_run_says_where_the_product_lies(here):
    done = nowcast("run small --reference-time 2024-06-01T02:00Z")
    assert done.exit_code == 0
    assert "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc" in done.stdout


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("run nowhere", 2, "it has: small"),
        ("run small --config missing.toml", 2, "missing.toml"),
        ("run small --set domains.small.cadence_minutes=7", 2, "domains.small.cadence_minutes = 7 (option)"),
        ("run small --set domains.small.colour=7", 2, "colour (option): unknown key"),
        ("run small --set domains.small.scale.dbz_max=30", 2, "(nowcast.toml, option)"),
        ("run small --set root", 2, "KEY=VALUE"),
        ("run small --reference-time noon", 2, "ISO 8601"),
        ("run small --reference-time 2024-06-01T02:03Z", 2, "10-minute axis"),
        ("run small --reference-time 2199-01-01T00:00Z", 2, "after now"),
        ("backfill small --from 2024-06-02 --to 2024-06-01", 2, "before --from"),
        ("verify small --from 2024-06-02 --to 2024-06-01", 2, "before --from"),
        ("backfill small --from 0001-01-01 --to 2024-06-01", 2, "1900 to 2199"),
        ("backfill small --from 2024-06-01T02:03Z --to 2024-06-01T02:07Z", 0, "no instant of the 10-minute axis"),
        ("train small --name convlstm", 2, "shipped model has this name"),
        ("report small", 2, "nowcast backfill small"),
        ("view small", 2, "nowcast run small"),
        ("train small", 3, "nowcast ingest small"),
        ("train small --network nonesuch", 2, "wu2019_radar_3l"),
        ("train small --name ../evil", 2, "--name"),
        ("models show nonesuch", 2, "convlstm"),
        ("run small --set root=/proc/nowcast", 4, "cannot be used"),
        ("ingest small --set catalog=sqlite:////proc/nowcast/c.sqlite", 4, "cannot be made"),
        ("status --set catalog=sqlite:////proc/nowcast/c.sqlite", 0, "there is no root yet"),
        ("run small --prefect --set catalog=postgresql+psycopg://u:hush@127.0.0.1:9/x", 2, "NOWCAST_CATALOG"),
        ("networks list --config x.toml", 0, "wu2019_radar_3l"),
        ("catalog upgrade --json", 0, "0004"),
        ("status --set catalog=catalog.sqlite", 2, "expected sqlite:///FILE or postgresql://"),
        ("status --set catalog=postgresql+psycopg://u:hush@127.0.0.1:9/x", 4, "cannot be used"),
    ],
)
def test_exit_codes_and_messages(here, line, code, said):
    done = nowcast(line)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "hush" not in done.output


def test_partly_done_is_three_with_the_reasons(here, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "comp_20240601T020000Z.h5").write_bytes(b"broken")
    change = "--set domains.small.source={kind='gridded',reader='odim_comp',uri='in'}"
    toml = SMALL.split("grid =")[0] + (
        "grid = { native = true }\nsource = { kind = 'gridded', reader = 'odim_comp', uri = 'in' }\n"
    )
    (tmp_path / "nowcast.toml").write_text(toml)
    done = nowcast("ingest small")
    assert done.exit_code == 3, change
    assert "comp_20240601T020000Z.h5" in done.output
    missing = nowcast(f"backfill small {PERIOD} --json")
    assert missing.exit_code == 3
    problems = json.loads(missing.stdout)["problems"]
    assert any("no frame at the reference time" in p for p in problems)


def test_nothing_due_is_done(here, tmp_path):
    (tmp_path / "in").mkdir()
    toml = SMALL.split("grid =")[0] + (
        "grid = { native = true }\nsource = { kind = 'gridded', reader = 'odim_comp', uri = 'in' }\n"
    )
    (tmp_path / "nowcast.toml").write_text(toml)
    done = nowcast("run small")
    assert done.exit_code == 0 and "nothing due" in done.stdout


def test_a_catalog_of_another_schema_names_the_command(here):
    import sqlite3

    nowcast("ingest small --from 2024-06-01T02:00Z --to 2024-06-01T02:00Z")
    with sqlite3.connect(here / "data" / "catalog.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '0000'")
    done = nowcast("status")
    assert done.exit_code == 4 and "nowcast catalog upgrade" in done.output


def test_train_writes_a_model_that_serves(here):
    nowcast("ingest small --from 2024-06-01T00:00Z --to 2024-06-02T12:00Z")
    line = "train small --name mine --steps 2 --crop 32 --batch 1 --lead-frames 3"
    done = nowcast(line)
    assert done.exit_code == 0, done.output
    again = nowcast(line)
    assert again.exit_code == 2 and "exists already" in again.output  # a model in use is never overwritten
    listed = json.loads(nowcast("models list --json").stdout)
    assert {"convlstm", "mine"} <= {row["name"] for row in listed}
    card = json.loads(nowcast("models show mine").stdout)
    assert card["cadences_minutes"] == [10] and card["training"]["steps"] == 2
    assert (here / "data/models/mine/metrics.csv").read_text().startswith("step,train_loss")
    report = json.loads(nowcast(f"backfill small {PERIOD} --set domains.small.model=mine --json").stdout)
    assert report["methods"] == {"mine": 2}


def test_networks_list_needs_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {row["name"]: row for row in json.loads(nowcast("networks list --json").stdout)}
    assert rows["wu2019_radar_3l"]["parameters"] == 670_209
    assert "670,209" in nowcast("networks list").stdout


def test_version_has_number_and_commit():
    done = subprocess.run([sys.executable, "-m", "flows.cli", "--version"], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout.startswith("nowcast 0.1.0")


def test_config_show_gives_values_and_origins(here):
    rows = {row["key"]: row for row in json.loads(nowcast("config show --json --set threads=2").stdout)}
    assert rows["threads"] == {"key": "threads", "value": "2", "origin": "option"}
    assert rows["domains.small.cadence_minutes"]["origin"] == "nowcast.toml"
    assert rows["domains.small.max_gap"]["origin"] == "default"
    (here / "nowcast.toml").write_text(SMALL.replace("lead_frames = 3", "").replace("minutes = 10", "minutes = 6"))
    rows = {row["key"]: row for row in json.loads(nowcast("config show --json").stdout)}
    assert rows["domains.small.lead_frames"] == {"key": "domains.small.lead_frames", "value": "20", "origin": "default"}
    assert "+proj=laea +lat_0=51 +lon_0=5 +units=m" in nowcast("config show").stdout.replace("\n", "")


def test_ctrl_c_is_said_and_what_stands_is_kept(here, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.operations.ingest_window", interrupted)
    done = nowcast("ingest small")
    assert done.exit_code == 130 and "the same command goes on" in done.output


def test_logs_as_json_carry_domain_time_and_run(here):
    line = "run small --reference-time 2024-06-01T02:00Z -v --set log_format=json"
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *shlex.split(line)],
        capture_output=True, text=True, cwd=here, env={**__import__("os").environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in done.stderr.splitlines() if text.startswith("{")]
    published = next(entry for entry in lines if "published" in entry["message"])
    assert published["domain"] == "small" and published["reference_time"] == "2024-06-01T02:00:00Z"
    assert len(published["run_id"]) == 8


def test_every_example_of_real_data_is_served(sample_data, here):
    """One cycle of every gridded sequence, by changing only the domain file."""
    cycles = {
        "brisbane": ("brisbane", "2020-10-31T04:00Z"),
        "knmi": ("netherlands", "2010-08-26T01:00Z"),
        "fmi": ("finland", "2016-09-28T16:00Z"),
        "meteoswiss": ("swiss_summer", "2016-07-11T22:00Z"),
    }
    for file, (domain, time) in cycles.items():
        example = PROJECT / "infra" / "domains" / f"{file}.toml"
        done = nowcast(
            f"run {domain} --reference-time {time} --json --config {example} --set root={here / 'data'} "
            f"--set domains.{domain}.lead_frames=2 --set domains.{domain}.grid.coarsen=4"
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["methods"] == {"champion": 1}


def test_models_are_promoted_and_taken_back_by_hand(here):
    assert nowcast(f"ingest small {PERIOD}").exit_code == 0
    done = nowcast("models promote champion small --reason 'looks good'")
    assert done.exit_code == 0 and "champion" in done.output, done.output
    shown = json.loads(nowcast("models history small --json").stdout)
    assert (shown["serves"], shown["asked"]) == ("champion", "champion")
    [row] = shown["promotions"]
    assert (row["reason"], row["instead_of"], row["ended_at"]) == ("looks good", "optical_flow", None)
    assert row["since"].endswith("Z")
    again = nowcast("models promote champion small")
    assert (again.exit_code, "serves small already" in again.output) == (3, True)
    for wrong in ("nonesuch", "../champion"):
        assert nowcast(f"models promote {wrong} small").exit_code == 3
    assert "optical_flow does" in nowcast("models rollback small").output
    assert "no promotion of small stands" in nowcast("models rollback small").output
    assert "optical_flow serves small" in nowcast("models history small").output
    refused = nowcast("retrain small --set retrain.network=nope")
    assert (refused.exit_code, "retrain.network = 'nope'" in refused.output) == (2, True)

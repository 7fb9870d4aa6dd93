"""Datasets from the archive: what is learnt from, what is not, and who is told."""

import json
from datetime import timedelta

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from models import dataset as on_disk
from models.dataset import LEARN, VALIDATE
from pipeline import dataset, operations, times
from pipeline.dataset import DatasetRequest
from pipeline.errors import NowcastError, SettingsError
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, remove_frames


@pytest.fixture
def settings(root):
    """Five hours of rain, and the same region every five minutes."""
    five = synthetic_domain("five", cadence_minutes=5)
    settings = settings_for(root, synthetic_domain(), five)
    for name in ("small", "five"):
        operations.ingest(settings, name, T0, T0 + timedelta(hours=5), NOW)
    return settings


def build(settings, folder, *names, **request):
    domains = [settings.domain(name) for name in names or ("small",)]
    return dataset.build(domains, Store(settings.root), folder, DatasetRequest(**request), "a command", NOW)


def test_the_newest_part_is_for_validation_and_shares_no_frame_with_the_rest(settings, tmp_path):
    built = build(settings, tmp_path / "data", "small", "five", validation_share=0.3, correlation_below=1.01)
    series, card = on_disk.load(tmp_path / "data")
    assert card["command"] == "a command" and set(series) == {"small", "five"}
    for name, one in series.items():
        step = 1 if name == "small" else 2
        assert one.facts.cadence_minutes == (10 if name == "small" else 5)
        reached = max(t + step * n for t in one.train for n in range(1, 13) if one.together(t, t + step * n))
        before = min(t - 2 * step for t in one.validation)
        assert before - reached > 60 / one.facts.cadence_minutes
        assert (one.part[one.train] == LEARN).all() and (one.part[one.validation] == VALIDATE).all()
        assert built.frames[name] == len(one.pixels) == 300 // one.facts.cadence_minutes + 1
        assert np.abs(one.motion[one.train].astype(float)).mean() > 0.1
        assert not one.motion[:3].any()


def test_the_filter_takes_out_what_hardly_changes_and_keeps_initiation(settings, tmp_path):
    shares = {}
    for limit in (0.2, 0.75, 1.01):
        shares[limit] = build(settings, tmp_path / str(limit), correlation_below=limit).kept["small"]
    assert shares[0.2] < shares[0.75] <= shares[1.01] == 1.0
    one = on_disk.load(tmp_path / "1.01")[0]["small"]
    pixels = np.array(one.pixels)
    time = int(one.train[0])
    last = max(n for n in range(1, 13) if one.together(time, time + n)) + time
    request = DatasetRequest(correlation_below=0.01)
    from dataclasses import replace

    for empty, kept in (([time - 2], True), ([last], True), ([time - 2, last], False)):
        changed = pixels.copy()
        changed[empty] = 0
        assert dataset._differs(replace(one, pixels=changed), time, 1, request) == kept


def test_a_gap_in_the_archive_parts_it(settings, tmp_path):
    remove_frames(settings, T0 + 12 * STEP)
    build(settings, tmp_path / "data", validation_share=0, correlation_below=1.01)
    one = on_disk.load(tmp_path / "data")[0]["small"]
    assert len(one.pixels) == 30 and list(np.diff(one.slots)).count(2) == 1
    gap = int(np.flatnonzero(np.diff(one.slots) == 2)[0])
    assert all(t < gap or t - 3 > gap for t in one.train)
    assert not one.motion[gap + 1 : gap + 4].any()


def test_drizzle_has_one_floor_and_what_is_not_observed_is_dry(settings, tmp_path):
    build(settings, tmp_path / "low")
    build(settings, tmp_path / "high", floor_mm_h=2.0)
    low, high = (on_disk.load(tmp_path / name)[0]["small"] for name in ("low", "high"))
    assert (low.pixels > 0).mean() > (high.pixels > 0).mean() > 0
    assert high.pixels[high.pixels > 0].min() >= 137 > low.pixels[low.pixels > 0].min()
    for n in range(len(low.pixels)):
        assert not low.pixels[n][~low.observed(n)].any()


def test_what_cannot_be_learnt_from_is_said_and_leaves_nothing(settings, tmp_path):
    with pytest.raises(NowcastError, match=r"small: 3 frames, never 30 minutes of them"):
        build(settings, tmp_path / "short", start=T0, end=T0 + 2 * STEP)
    with pytest.raises(NowcastError, match="no frames of small in that period"):
        build(settings, tmp_path / "none", start=T0 - timedelta(days=9), end=T0 - timedelta(days=8))
    with pytest.raises(NowcastError, match="all of sequences that hardly change"):
        build(settings, tmp_path / "same", correlation_below=1e-6)
    other = settings.domain("small").model_copy(update={"product": ("surface_rain", "cappi_5000")})
    with pytest.raises(SettingsError, match="take one"):
        dataset.build([other], Store(settings.root), tmp_path / "two", DatasetRequest(), "", NOW)
    assert not list(tmp_path.glob("[!r]*")), "nothing was left behind"
    build(settings, tmp_path / "data")
    with pytest.raises(SettingsError, match="exists already"):
        build(settings, tmp_path / "data")


def test_the_command_says_what_it_made(settings, tmp_path):
    config = tmp_path / "nowcast.toml"
    config.write_text(
        f'root = "{settings.root}"\n[domains.small]\ncadence_minutes = 10\nlead_frames = 4\n'
        'grid = { crs = "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs", shape = [64, 64], '
        "spacing_m = 2000.0, centre = [5.0, 51.0] }\nsource = { kind = 'synthetic', seed = 21, event_hours = 6 }\n"
    )
    run = CliRunner().invoke
    arguments = ["dataset", "build", str(tmp_path / "data"), "small", "--config", str(config), "--json"]
    done = run(app, [*arguments, "--from", times.iso(T0), "--validation-share", "0.3"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["frames"] == {"small": 31} and told["train"]["small"] > 5 and told["megabytes"] < 1
    shown = run(app, ["dataset", "show", str(tmp_path / "data"), "--json"])
    assert json.loads(shown.stdout)["series"]["small"]["spacing_m"] == 2000.0
    assert str(tmp_path) not in (tmp_path / "data" / "card.json").read_text()
    assert run(app, ["dataset", "show", str(tmp_path / "nothing")]).exit_code == 2
    wrong = run(app, ["dataset", "build", str(tmp_path / "x"), "small", "--config", str(config), "--floor", "-1"])
    assert wrong.exit_code == 2 and "floor_mm_h" in wrong.stderr

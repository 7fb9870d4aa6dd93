"""Which forecasts are scored and when, honest masks, late observations, sums that add up."""

import shutil
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations
from pipeline.catalog import Catalog, Lease
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.packing import read_digest
from pipeline.storage import Store
from pipeline.verification import files
from pipeline.verification.pairs import PIXEL_SETS
from pipeline.verification.period import read_period
from pipeline.verification.tables import estimates, score_table
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


@pytest.fixture
def settings(root):
    return settings_for(root, synthetic_domain(model="optical_flow"))


def backfill(settings, cycles=3):
    return operations.backfill(settings, "small", T0, T0 + (cycles - 1) * STEP, NOW)


def the_sums(settings):
    (path,) = (settings.root / "verification").rglob("*.nc")
    return path, files.read(path)


def the_period(settings, start=T0 - timedelta(days=400), end=NOW):
    store, catalog = operations.open_root(settings)
    return read_period(store, catalog, settings.domain("small"), start, end)


def test_every_forecast_is_scored_beside_the_last_frame(settings):
    assert backfill(settings).verify.scored == 3
    _, data = the_sums(settings)
    assert data.attrs["methods"] == "optical_flow last_frame"
    (verified,) = the_period(settings)
    table = score_table(verified, {name: estimates(verified, name, 0) for name in PIXEL_SETS})
    table = table[(table.score == "csi") & (table.versus == "")]
    first = table[(table.lead_minutes == 10) & (table.threshold_mm_h == 0.5)].set_index(["method", "pixel_set"]).value
    assert first["optical_flow", "common"] > first["last_frame", "common"]  # the rain moves
    assert set(table.pixel_set) == {"common", "all_observed"}
    assert (table.forecasts == 3).all() and (table.coverage <= 1).all()


def test_last_frame_scores_are_those_of_the_archived_frames(settings):
    backfill(settings, cycles=1)
    _, data = the_sums(settings)
    archive = Archive(Store(settings.root), settings.domain("small"))
    now, then = archive.read(T0), archive.read(T0 + 2 * STEP)
    hits = ((now.rain >= 103) & (then.rain >= 103)).sum()  # 103 is the pixel of 0.5 mm/h
    assert int(data["hits"][0, 1, 1, 0, 0]) == hits > 0
    difference = now.rain.astype(float) - then.rain
    square = data["forecast_square"] + data["observed_square"] - 2 * data["product"]
    assert float(square[0, 1, 1, 0]) == (difference**2).sum()


def test_late_observations_are_scored_when_they_come_and_only_then(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + STEP, NOW)
    operations.run(settings, "small", T0, NOW)
    first = operations.verify(settings, "small", None, None, NOW).verify
    assert first.scored == 1
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert row["verified"] == "partly" and "2024-06-01T02:40:00Z" in row["verified_reason"]
    assert operations.verify(settings, "small", None, None, NOW).verify.unchanged == 1
    operations.ingest(settings, "small", T0, T0 + 4 * STEP, NOW)
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 1
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert (row["verified"], row["verified_reason"]) == ("fully", "")
    path, data = the_sums(settings)
    assert data["observed"].values.tolist() == [[1, 1, 1, 1]]
    before = read_digest(path)
    with Catalog(settings.catalog).write() as connection:  # a catalog that forgot finds that the sums stand
        connection.execute(sa.update(tables.cycles).values(observations_digest="", verified=""))
    assert operations.verify(settings, "small", None, None, NOW).verify.unchanged == 1
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert row["verified"] == "fully"
    path.unlink()  # and from nothing the same sums are made
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 1
    assert read_digest(path) == before


def test_a_forecast_without_observations_waits_with_a_reason(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    operations.run(settings, "small", T0, NOW)
    report = operations.verify(settings, "small", None, None, NOW)
    assert (report.verify.scored, report.verify.waiting) == (0, 1)
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert "no observation" in row["verified_reason"]
    page = operations.report(settings, "small", None, None, None, NOW).page.read_text()
    assert "No forecast has been verified yet" in page


def test_other_lead_times_than_the_products_are_an_error_for_each_and_not_a_crash(settings):
    backfill(settings, cycles=2)
    other = settings_for(settings.root, synthetic_domain(model="optical_flow", lead_frames=2))
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.update(tables.cycles).values(observations_digest=""))
    report = operations.verify(other, "small", None, None, NOW)
    assert len(report.problems) == 2 and "4 leads every 10 minutes" in report.problems[0]
    assert operations.report(other, "small", None, None, None, NOW).page.is_file()


def test_scores_under_other_thresholds_and_back_again_are_scores_of_all(settings):
    backfill(settings, cycles=3)
    path, _ = the_sums(settings)
    before = read_digest(path)
    other = settings_for(settings.root, synthetic_domain(model="optical_flow", thresholds_mm_h=[1.0, 20.0]))
    assert operations.verify(other, "small", T0, T0, NOW).verify.scored == 3  # the file is one: all of its forecasts
    assert len(files.read(path)["reference_time"]) == 3
    back = operations.verify(settings, "small", T0, T0 + STEP, NOW)
    assert back.verify.scored == 3 and back.problems == []
    assert read_digest(path) == before
    assert operations.verify(settings, "small", None, None, NOW).verify.unchanged == 3


@pytest.mark.parametrize("content", [b"", b"garbage", "truncated"])
def test_a_lost_or_damaged_file_of_scores_is_made_again(settings, content):
    backfill(settings, cycles=3)
    path, _ = the_sums(settings)
    before, before_bytes = read_digest(path), path.read_bytes()
    path.write_bytes(before_bytes[:-100] if content == "truncated" else content)
    page = operations.report(settings, "small", None, None, None, NOW)
    assert any("Some scores are left out" in one and "nowcast verify small" in one for one in page.summary)
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 3
    assert read_digest(path) == before


def test_scores_that_another_process_works_on_are_waited_for(settings, monkeypatch):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 4 * STEP, NOW)
    operations.run(settings, "small", T0, NOW)
    lease = Lease(Catalog(settings.catalog), "scores/verification/small/hindcast/optical_flow/20240601.nc")
    assert lease.acquire()
    monkeypatch.setattr("pipeline.verification.sums_files.LEASE_PATIENCE_S", 0.0)
    held = operations.verify(settings, "small", None, None, NOW)
    assert held.verify.scored == 0 and "another process" in held.problems[0]
    monkeypatch.setattr("pipeline.verification.sums_files.LEASE_PATIENCE_S", 30.0)
    threading.Timer(0.3, lease.release).start()
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 1


def test_a_changed_product_is_not_scored(settings):
    backfill(settings, cycles=2)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    shutil.copy(path.with_name("small_20240601T021000Z_r1.nc"), path)
    the_sums(settings)[0].unlink()
    report = operations.verify(settings, "small", None, None, NOW)
    assert report.verify.scored == 1
    assert "not the product that the catalog recorded" in report.problems[0]


def test_unobserved_cells_take_no_part_and_a_missing_forecast_counts_as_dry(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 4 * STEP, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    for n in range(-4, 1):  # the west was not covered when the forecast was made
        frame = archive.read(T0 + n * STEP)
        frame.state[:, :16], frame.pixels[..., :16] = 1, 0
        archive.write(T0 + n * STEP, frame, archive.source())
    frame = archive.read(T0 + STEP)  # and the north is not observed at the first lead
    frame.state[:8], frame.pixels[:, :8] = 1, 0
    archive.write(T0 + STEP, frame, archive.source())
    operations.run(settings, "small", T0, NOW)
    operations.verify(settings, "small", None, None, NOW)
    _, data = the_sums(settings)
    pairs = data["pairs"].values[0, 0]  # (lead, pixel set)
    assert pairs[0].tolist() == [56 * 48, 56 * 64]
    assert pairs[1].tolist() == [64 * 48, 64 * 64]
    misses = data["misses"].values[0, 0, 1, 0, :]
    truth = archive.read(T0 + 2 * STEP)
    assert misses[1] - misses[0] == (truth.rain[:, :16] >= 103).sum()


def test_forecasts_of_a_month_added_up_from_days_are_those_added_up_at_once(settings):
    # three forecasts on either side of midnight: two files
    start = T0.replace(hour=23, minute=30)
    operations.backfill(settings, "small", start, start + 5 * STEP, NOW)
    paths = sorted((settings.root / "verification").rglob("*.nc"))
    assert len(paths) == 2
    (verified,) = the_period(settings)
    whole = files.join([files.read(path) for path in paths])
    for name in ("hits", "misses", "false_alarms", "correct_negatives"):
        assert (verified.total[name] == whole[name].values.astype(np.int64).sum(axis=0)).all()
    for name in ("product", "rain_squared_error", "fraction_product", "power"):
        assert verified.total[name] == pytest.approx(whole[name].values.sum(axis=0, dtype=np.float64), rel=1e-12)
    # and in any other order of adding
    assert sum(len(one.reference_times) for one in (verified,)) == 6
    halves = [read_part(settings, start, start + 2 * STEP), read_part(settings, start + 3 * STEP, start + 5 * STEP)]
    assert (halves[0].total["hits"] + halves[1].total["hits"] == verified.total["hits"]).all()


def read_part(settings, start, end):
    (part,) = the_period(settings, start, end)
    return part


def test_a_score_of_the_past_knows_no_later_observation(settings):
    backfill(settings, cycles=3)
    store, catalog = operations.open_root(settings)
    known = T0 + 2 * STEP
    (verified,) = read_period(store, catalog, settings.domain("small"), T0, known, known_by=known)
    # of leads 10, 20, 30, 40: the first forecast knows two, the second one, the third none
    assert verified.total["observed"].tolist() == [2, 1, 0, 0]
    assert (verified.total["pairs"][0, :, 1] > 0).tolist() == [True, True, False, False]
    assert (verified.total["fraction_observed"][0, 2:] == 0).all()


def test_faint_echo_is_left_out_only_on_request(settings):
    backfill(settings, cycles=1)
    path, data = the_sums(settings)
    other = settings_for(
        settings.root, synthetic_domain(model="optical_flow", verification={"ignore_faint_echo": True})
    )
    assert operations.verify(other, "small", None, None, NOW).verify.scored == 1
    masked = files.read(path)
    truth = Archive(Store(settings.root), settings.domain("small")).read(T0 + STEP)
    faint = (truth.rain > 0) & (truth.rain < 71)
    assert faint.any()
    difference = data["pairs"].values[0, 0, 0, 1] - masked["pairs"].values[0, 0, 0, 1]
    assert difference == (faint & truth.observed).sum()
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 1  # and back again
    assert read_digest(path) == data.attrs["content_digest"]


def test_references_of_pysteps_are_compared_on_request_and_made_once(settings, monkeypatch):
    pytest.importorskip("pysteps", reason="comparison package; `make test` installs it")
    from pipeline.verification import references

    backfill(settings, cycles=1)
    asked = settings_for(
        settings.root, synthetic_domain(model="optical_flow", verification={"references": ["sprog", "anvil"]})
    )
    assert operations.verify(asked, "small", None, None, NOW).verify.scored == 1
    path = settings.root / "verification/small/hindcast/optical_flow.with.anvil.sprog/20240601.nc"
    data = files.read(path)
    assert data.attrs["methods"] == "optical_flow last_frame anvil sprog"
    assert (data["hits"].values[0, 2:, 0, 0] > 0).all()
    monkeypatch.setattr(references, "_make", None)  # from now on they are read
    path.unlink()
    assert operations.verify(asked, "small", None, None, NOW).verify.scored == 1
    names = {one.model for one in the_period(settings)}
    assert names == {"optical_flow", "optical_flow.with.anvil.sprog"}
    store, catalog = operations.open_root(asked)
    from pipeline.rebuild import rebuild

    assert rebuild([asked.domain("small")], store, catalog).forecasts == 1  # references are no products
    # without the request the plain scores are still there, and are not made again
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 0


def test_pysteps_that_is_not_installed_is_a_clear_error(settings, monkeypatch):
    backfill(settings, cycles=1)
    monkeypatch.setitem(__import__("sys").modules, "pysteps", None)
    asked = settings_for(settings.root, synthetic_domain(model="optical_flow", verification={"references": ["sprog"]}))
    with pytest.raises(SettingsError, match="sprog needs pysteps"):
        operations.verify(asked, "small", None, None, NOW)

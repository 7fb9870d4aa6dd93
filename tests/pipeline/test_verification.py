"""Sums by hand, honest masks, late observations, and the page."""

import shutil
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import nowcast, operations
from pipeline.catalog import Catalog, Lease
from pipeline.frames.archive import Archive
from pipeline.packing import read_digest
from pipeline.storage import Store
from pipeline.verification import files, report, scores
from pipeline.verification.sums import pair_sums
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


def test_counts_and_moments_by_hand():
    forecast = np.array([[100, 50, 0], [100, 0, 200]], np.uint8)
    observed = np.array([[100, 0, 60], [40, 0, 99]], np.uint8)
    valid = np.array([[True, True, True], [True, True, False]])
    sums = pair_sums(forecast, observed, valid, [50, 100])
    # at 50: hit (100/100), miss (0/60), false alarms (50/0, 100/40), correct negative (0/0)
    assert sums.counts[:, 0].tolist() == [1, 1, 2, 1]
    # at 100, a pixel equal to the threshold is an event
    assert sums.counts[:, 1].tolist() == [1, 0, 1, 3]
    pairs, squared, absolute, ff, oo, fo = sums.moments
    assert pairs == 5
    assert squared == 50**2 + 60**2 + 60**2
    assert absolute == 50 + 60 + 60
    assert (ff, oo, fo) == (100**2 + 50**2 + 100**2, 100**2 + 60**2 + 40**2, 100 * 100 + 100 * 40)


def test_nothing_valid_is_not_measured_and_not_zero():
    empty = pair_sums(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), [50])
    h, m, f, c = empty.counts[:, 0]
    assert (h, m, f, c) == (0, 0, 0, 0)
    for value in (scores.csi(h, m, f), scores.pod(h, m), scores.far(h, f), scores.frequency_bias(h, m, f)):
        assert np.isnan(value)
    assert np.isnan(scores.mean(empty.moments[1], empty.moments[0]))
    assert np.isnan(scores.correlation(0.0, 0.0, 0.0, 0))


def test_scores_equal_those_of_the_scores_package():
    peer = pytest.importorskip("scores.categorical", reason="comparison package; `make test` installs it")
    import xarray as xr

    rng = np.random.default_rng(0)
    forecast, observed = rng.integers(0, 256, (2, 60, 70)).astype(np.uint8)
    valid = rng.random((60, 70)) > 0.2
    threshold = 138
    h, m, f, c = pair_sums(forecast, observed, valid, [threshold]).counts[:, 0]
    as_nan = lambda a: xr.DataArray(np.where(valid, a.astype(float), np.nan), dims=("y", "x"))  # noqa: E731
    manager = peer.ThresholdEventOperator(default_event_threshold=threshold).make_contingency_manager(
        as_nan(forecast), as_nan(observed)
    )
    table = manager.transform()
    for ours, theirs in (
        (scores.csi(h, m, f), table.critical_success_index()),
        (scores.pod(h, m), table.probability_of_detection()),
        (scores.far(h, f), table.false_alarm_ratio()),
        (scores.hss(h, m, f, c), table.heidke_skill_score()),
        (scores.frequency_bias(h, m, f), table.frequency_bias()),
    ):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-9)


@pytest.fixture
def settings(root):
    return settings_for(root, synthetic_domain(model="optical_flow"))


def backfill(settings, cycles=3):
    return operations.backfill(settings, "small", T0, T0 + (cycles - 1) * STEP, NOW)


def the_sums(settings):
    (path,) = (settings.root / "verification").rglob("*.nc")
    return path, files.read(path)


def test_every_forecast_is_scored_beside_the_last_frame(settings):
    assert backfill(settings).verify.scored == 3
    _, data = the_sums(settings)
    assert data.attrs["methods"] == "optical_flow last_frame"
    table = files.score_table(data)
    flow = table[(table.method == "optical_flow") & (table.lead_minutes == 10) & (table.threshold_mm_h == 0.5)]
    last = table[(table.method == "last_frame") & (table.lead_minutes == 10) & (table.threshold_mm_h == 0.5)]
    assert (flow.csi.values > last.csi.values).all()  # the rain moves
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
    assert float(data["squared_error"][0, 1, 1, 0]) == (difference**2).sum()


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
    with Catalog(settings.catalog).write() as connection:  # verified again from nothing: the same sums
        connection.execute(sa.update(tables.cycles).values(observations_digest="", verified=""))
    operations.verify(settings, "small", None, None, NOW)
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


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_lost_or_damaged_file_of_scores_is_made_again(settings, content):
    backfill(settings, cycles=3)
    path, _ = the_sums(settings)
    before = read_digest(path)
    path.write_bytes(content)
    if content:  # its size does not tell; whoever scores next finds it
        with Catalog(settings.catalog).write() as connection:
            first = tables.cycles.c.reference_time == T0.timestamp()
            connection.execute(sa.update(tables.cycles).where(first).values(observations_digest=""))
    operations.verify(settings, "small", None, None, NOW)
    assert read_digest(path) == before


def test_scores_that_another_process_works_on_are_waited_for(settings, monkeypatch):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 4 * STEP, NOW)
    operations.run(settings, "small", T0, NOW)
    lease = Lease(Catalog(settings.catalog), "scores/verification/small/hindcast/optical_flow/20240601.nc")
    assert lease.acquire()
    monkeypatch.setattr("pipeline.verification.verify.LEASE_PATIENCE_S", 0.0)
    held = operations.verify(settings, "small", None, None, NOW)
    assert held.verify.scored == 0 and "another process" in held.problems[0]
    monkeypatch.setattr("pipeline.verification.verify.LEASE_PATIENCE_S", 30.0)
    threading.Timer(0.3, lease.release).start()
    assert operations.verify(settings, "small", None, None, NOW).verify.scored == 1


def test_methods_that_are_equal_are_said_to_be_equal():
    rows = [
        {"method": m, "pixel_set": "common", "lead_minutes": 30, "threshold_mm_h": 0.5, "csi": 0.0, "pairs": 9}
        for m in ("convlstm", "optical_flow")
    ]
    (said,) = report.sentences(pd.DataFrame(rows))
    assert said.endswith("convlstm and optical_flow are equal.")


def test_a_changed_product_is_not_scored(settings):
    backfill(settings, cycles=2)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    shutil.copy(path.with_name("small_20240601T021000Z_r1.nc"), path)
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.update(tables.cycles).values(observations_digest=""))
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
    misses = data["misses"].values[0, 0, 1, :, 0]
    truth = archive.read(T0 + 2 * STEP)
    assert misses[1] - misses[0] == (truth.rain[:, :16] >= 103).sum()


def test_page_is_self_contained_and_csv_holds_every_score(settings, tmp_path):
    backfill(settings)
    written = operations.report(settings, "small", None, None, tmp_path / "out", NOW)
    page = written.page.read_text()
    assert written.page.parent == tmp_path / "out"
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    for words in ("CSI", "mm/h", "optical_flow", "Rules of this verification", "3 forecasts were published"):
        assert words in page
    table = pd.read_csv(written.scores)
    assert len(table) == 2 * 2 * 4 * 5  # methods, pixel sets, leads, thresholds
    assert {"csi", "pod", "far", "hss", "bias", "mse", "mae", "correlation"} <= set(table.columns)


def test_the_page_does_not_call_it_dry_when_there_was_nothing_to_compare(settings, tmp_path):
    # before T0 there is no frame, so that only the last frame can serve
    operations.ingest(settings, "small", T0, T0 + 4 * STEP, NOW)
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    nowcast.issue(
        domain, store, catalog, lambda m: nowcast.load_methods(domain, store, settings, m), [T0], "hindcast", NOW
    )
    operations.verify(settings, "small", None, None, NOW)
    page = operations.report(settings, "small", None, None, tmp_path, NOW).page.read_text()
    assert "no pixel where last_frame, optical_flow and the observation all have a value" in page
    assert "no event was observed" not in page


def test_the_page_escapes_what_comes_from_outside(settings, tmp_path):
    backfill(settings, cycles=1)
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.update(tables.cycles).values(reason="<script>alert(1)</script>"))
    page = operations.report(settings, "small", None, None, tmp_path, NOW).page.read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page

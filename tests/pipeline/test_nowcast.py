"""Forecasts: what they are made from, the fallback chain, and what they never do."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, product, times
from pipeline.catalog import Catalog
from pipeline.errors import NotForecast
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import ADVECTED, NO_COVERAGE
from pipeline.packing import read_packed
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, digests, issue, remove_frames, write_model


def test_nothing_looks_into_the_future(settings, tmp_path):
    backfill(settings, T0, T0)
    other = settings_for(tmp_path / "other", settings.domain("small"))
    operations.ingest(other, "small", T0 - 4 * STEP, T0, NOW)  # nothing after T0 exists here
    (made,) = issue(other, T0)
    assert made.content_digest == digests(settings)[times.seconds(T0)][0]


def test_a_damaged_input_frame_counts_as_missing(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    for slot, expected in ((10, "tiny"), (12, None)):  # 01:40, then the reference time itself
        path = settings.root / f"archive/small/2024/06/01.zarr/frames/c/{slot}/0/0/0"
        path.write_bytes(b"no frame")
        (made,) = issue(settings, T0, kind=f"k{slot}")
        assert (made.method or None) == expected
        if expected:
            assert read_packed(settings.root / made.path).attrs["filled_times"] == "2024-06-01T01:40:00Z"


def test_a_flipped_byte_in_a_frame_is_noticed_and_its_source_read_again(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    whole = archive.read(T0 - STEP)
    folder = archive._path(datetime(2024, 6, 1, tzinfo=UTC)) / "frames/c/11"
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    (made,) = issue(settings, T0)
    data = read_packed(settings.root / made.path)
    assert data.attrs["filled_times"] == "2024-06-01T01:50:00Z" and "01:50" not in data.attrs["input_times"]
    again = operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    assert (again.ingest.framed, again.ingest.unchanged) == (1, 4)
    assert np.array_equal(Archive(Store(settings.root), settings.domain("small")).read(T0 - STEP).pixels, whole.pixels)
    assert len(list((settings.root / "quarantine/small").iterdir())) == 1


def test_a_domain_of_last_frame_has_no_fallback_to_report(root):
    settings = settings_for(root, synthetic_domain(model="last_frame"))
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    remove_frames(settings, T0 - STEP, T0 - 2 * STEP)
    (made,) = issue(settings, T0)
    assert (made.method, made.reason) == ("last_frame", "")


def test_one_missing_frame_is_filled_and_said_so(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    remove_frames(settings, T0 - 2 * STEP)
    (made,) = issue(settings, T0)
    assert made.method == "tiny"
    attrs = read_packed(settings.root / made.path).attrs
    assert attrs["filled_times"] == "2024-06-01T01:40:00Z"
    assert "2024-06-01T01:40:00Z" not in attrs["input_times"]


def test_a_longer_gap_falls_back_to_optical_flow_and_then_to_the_last_frame(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + STEP, NOW)
    remove_frames(settings, T0 - 3 * STEP, T0 - 2 * STEP)
    (flow,) = issue(settings, T0)
    assert flow.method == "optical_flow" and "2024-06-01T01:30:00Z" in flow.reason
    remove_frames(settings, T0 - STEP, T0)
    (last,) = issue(settings, T0 + STEP)
    assert last.method == "last_frame" and "two newest frames" in last.reason
    baselines = product.read_baselines(Store(settings.root).baselines(settings.root / last.path))
    assert baselines["optical_flow"] is None and baselines["last_frame"] is not None


def test_no_frame_at_the_reference_time_is_a_recorded_skip_and_the_rest_goes_on(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + STEP, NOW)
    remove_frames(settings, T0)
    skipped, made = issue(settings, T0, T0 + STEP)
    assert (skipped.state, made.state) == ("skipped", "published")
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles).where(tables.cycles.c.state == "skipped"))
    assert "no frame at the reference time 2024-06-01T02:00:00Z" in row["reason"]
    issue(settings, T0)
    assert len(list(Store(settings.root).read_journal())) == 1  # said once, not at every run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dbz_max": 70.0}, "dBZ scale"),
        ({"cadences_minutes": [5, 6]}, "cadence"),
        ({"spacing_m": [500.0, 1000.0]}, "grid spacing"),
        ({"product": "cappi_2km"}, "product"),
    ],
)
def test_a_model_for_other_frames_is_refused_and_optical_flow_serves(root, tmp_path, change, said):
    settings = settings_for(root, synthetic_domain(model=write_model(tmp_path / "m", **change)))
    report = backfill(settings)
    assert report.methods == {"optical_flow": 1}
    assert said in report.notes[0]
    assert said in read_packed(root / report.products[0]).attrs["fallback_reason"]


@pytest.mark.parametrize("model", ["nonesuch", "/nowhere/at/all"])
def test_a_model_that_is_not_there_falls_back(root, model):
    report = backfill(settings_for(root, synthetic_domain(model=model)))
    assert report.methods == {"optical_flow": 1}
    assert "no model" in report.notes[0] or "not a readable model card" in report.notes[0]
    # forecasts went out, but not as configured: somebody must mend it
    (problem,) = report.problems
    assert problem.startswith("domains.small.model: ")


def test_a_product_of_another_model_stands_and_that_is_said(settings, root):
    backfill(settings)
    other = backfill(settings_for(root, synthetic_domain(model="last_frame")))
    assert other.cycles == {"unchanged": 1}
    assert other.notes == ["1 x stands as published by tiny, although the model is now last_frame"]


def test_a_model_that_fails_falls_back(settings, monkeypatch):
    from models.networks.encoder_forecaster import EncoderForecaster

    def fail(self, *arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(EncoderForecaster, "forward", fail)
    report = backfill(settings)
    assert report.methods == {"optical_flow": 1} and "can't allocate memory" in report.notes[0]


@pytest.mark.parametrize(
    ("network", "config", "thresholds"),
    [
        ("convlstm_classes", {"widths": [6], "patch": 2}, [0.5, 5.0, 10.0]),
        ("unet_segmentation", {"widths": [4, 8, 8], "input_frames": 5, "lead_frames": 4}, [0.5]),
    ],
)
def test_probabilities_are_those_of_the_head_at_the_thresholds_of_the_domain(
    root, tmp_path, network, config, thresholds
):
    model = write_model(tmp_path / "tiny", network, config)
    settings = settings_for(root, synthetic_domain(model=model, thresholds_mm_h=[0.3, 0.5, 5.0, 10.0, 20.0]))
    report = backfill(settings)
    assert report.methods == {"tiny": 1}
    data = read_packed(root / report.products[0])
    assert data["threshold"].values.tolist() == thresholds
    chance = data["probability_of_exceedance"].values
    assert chance.shape == (len(thresholds), 4, 64, 64)
    assert 0 <= chance.min() < chance.max() <= 200 and (np.diff(chance, axis=0) <= 0).all()


def test_a_model_of_the_moving_frame_serves_domains_of_other_cadence_spacing_and_relation(root, tmp_path):
    model = write_model(tmp_path / "tiny", "growth_decay", {"widths": [4, 8]}, moving=True, cadences_minutes=[5, 10])
    grid = {**synthetic_domain().grid.model_dump(), "shape": (96, 96), "spacing_m": 1000.0}
    fine = synthetic_domain("fine", cadence_minutes=5, grid=grid, zr={"a": 223.0, "b": 1.53}, model=model)
    settings = settings_for(root, synthetic_domain(model=model), fine)
    for name, cells in (("small", 64), ("fine", 96)):
        report = operations.backfill(settings, name, T0, T0, NOW, 1)
        assert report.methods == {"tiny": 1}, report.notes
        data = read_packed(root / report.products[0])
        assert data["threshold"].values.tolist() == [0.5, 2.0, 5.0, 10.0, 30.0]
        chance = data["probability_of_exceedance"].values
        assert chance.shape == (5, 4, cells, cells) and (np.diff(chance, axis=0) <= 0).all()
    short = synthetic_domain(model=model, input_frames=3)
    refused = operations.backfill(settings_for(tmp_path / "short", short), "small", T0, T0, NOW, 1)
    assert "needs 4 input frames, the domain has 3" in " ".join(refused.notes)


def test_a_method_without_probabilities_writes_none(settings, root):
    assert "probability_of_exceedance" not in read_packed(root / backfill(settings).products[0])


def test_dry_input_is_a_forecast_of_no_rain(settings):
    event = datetime(2024, 6, 1, 0, 0, tzinfo=UTC)  # an event begins dry
    domain = settings.domain("small")
    operations.ingest(settings, "small", event, event, NOW)
    archive = Archive(Store(settings.root), domain)
    frame = archive.read(event)
    assert not frame.pixels.any()
    for n in range(1, 5):
        archive.write(event + n * STEP, frame, archive.source())
    (made,) = issue(settings, event + 4 * STEP)
    data = read_packed(settings.root / made.path)
    assert (data["rainfall_rate"].values == 0).all() and data.attrs["dry_input"] == 1
    assert made.method == "tiny"


def test_a_frozen_feed_is_marked(settings, caplog):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 - 4 * STEP, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    frame = archive.read(T0 - 4 * STEP)
    for n in range(4):
        archive.write(T0 - n * STEP, frame, archive.source())
    with caplog.at_level("WARNING", logger="pipeline"):
        (made,) = issue(settings, T0)
    assert read_packed(settings.root / made.path).attrs["frozen_feed"] == 1
    assert any("frozen" in record.message for record in caplog.records)


def test_reference_times_off_the_axis_or_in_the_future_are_refused(settings):
    with pytest.raises(NotForecast, match="10-minute axis"):
        operations.run(settings, "small", T0 + timedelta(minutes=3), NOW)
    with pytest.raises(NotForecast, match="after now"):
        operations.run(settings, "small", T0 + STEP, T0)


def test_cells_without_coverage_stay_without_in_the_forecast(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    for n in range(5):
        frame = archive.read(T0 - n * STEP)
        frame.state[:, :20], frame.pixels[..., :20] = NO_COVERAGE, 0
        archive.write(T0 - n * STEP, frame, archive.source())
    (made,) = issue(settings, T0)
    pixels, state, _ = product.read_forecast(settings.root / made.path, settings.domain("small"))
    assert (state[:, :, :20] == NO_COVERAGE).all() and not (state[:, :, 20:] == NO_COVERAGE).any()
    assert not pixels[:, :, :20].any()
    data = read_packed(settings.root / made.path)
    assert (data["rainfall_rate"].values[:, :, :20] == -32768).all()


def test_inflow_of_optical_flow_is_flagged(root):
    report = backfill(settings_for(root, synthetic_domain(model="optical_flow")))
    _, state, _ = product.read_forecast(root / report.products[0], synthetic_domain())
    share = (state == ADVECTED).mean(axis=(1, 2))
    assert 0 < share[0] < share[-1] < 0.6


def test_the_inputs_digest_follows_frames_and_settings(settings, tmp_path):
    from pipeline.frames.sequences import read_sequence

    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    domain = settings.domain("small")
    archive = Archive(Store(settings.root), domain)
    before = read_sequence(archive, domain, T0)
    assert read_sequence(archive, domain, T0).digest(domain) == before.digest(domain)
    assert before.digest(domain.model_copy(update={"lead_frames": 5})) != before.digest(domain)
    frame = archive.read(T0 - STEP)
    frame.pixels[0, 0, 0] ^= 255
    archive.write(T0 - STEP, frame, archive.source())
    assert read_sequence(archive, domain, T0).digest(domain) != before.digest(domain)
    assert np.array_equal(before.pixels[-1], archive.read(T0).pixels)

"""Frames of several levels: from volumes through archive, training and forecast to the product."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from models.recipe import Recipe
from models.training_config import TrainingConfig
from pipeline import catalog as tables
from pipeline import operations
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.gaps import fill_gaps
from pipeline.frames.grayscale import ECHO, NO_ECHO, Frame
from pipeline.frames.sequences import read_sequence
from pipeline.ingest import ingest
from pipeline.packing import read_packed
from pipeline.prepare import domain_grid
from pipeline.product import read_forecast
from pipeline.rebuild import rebuild
from pipeline.storage import Store
from pipeline.train import _series, train
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.test_ingest_volumes import GRID, RADARS

T0 = datetime(2024, 6, 1, 3, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
TWO = ["surface_rain", "cappi_5000"]
SOURCE = {"kind": "synthetic_radars", "seed": 21, "radars": RADARS}


def two_levels(**changes):
    return synthetic_domain("net", grid=GRID, source=SOURCE, product=TWO, input_frames=3, **changes)


def test_a_second_level_shares_coverage_and_motion_and_has_its_own_echo(store, catalog):
    ingest(two_levels(), store, catalog, T0, T0, NOW)
    frame = Archive(store, two_levels()).read(T0)
    assert frame.pixels.shape == (2, 96, 96)
    low, high = frame.pixels
    both = (low > 0) & (high > 0)
    # above the melting layer the synthetic echo falls by 6 dB a km
    assert both.sum() > 100 and (low > 0).sum() > both.sum() and low[both].mean() > high[both].mean() + 10
    assert not frame.pixels[:, ~frame.observed].any()
    assert np.array_equal(Archive(store, two_levels()).read(T0).rain, low)


def put_moving_rain(archive, count: int, start=T0) -> None:
    """Two channels: a wet area that moves three cells a frame, and its core above."""
    grid = domain_grid(archive.domain)
    for n in range(count):
        pixels = np.zeros((2, *grid.shape), np.uint8)
        for size, value, channel in ((40, 130, 0), (20, 170, 1)):
            rows, columns = (np.arange(size)[:, None] + 20) % 96, (np.arange(size)[None] + 3 * n) % 96
            pixels[channel, rows, columns] = value
        state = np.where(pixels[0] > 0, ECHO, NO_ECHO).astype(np.uint8)
        archive.write(start + n * STEP, Frame(pixels, state), FrameSource(grid, 0.1, 0.0))


def test_two_levels_from_archive_to_scores(root, store, catalog, tmp_path):
    """A network of two channels is trained, forecasts both, and the first is published as rain and verified."""
    put_moving_rain(Archive(store, two_levels()), 60)
    rebuild([two_levels()], store, catalog)
    task = TrainingConfig(input_frames=3, lead_frames=4, batch=2, steps=2, validate_every=1)
    train([two_levels()], store, Recipe(crop=64, training=task), tmp_path / "pair", "test", 1, "cpu", NOW)
    domain = two_levels(model=str(tmp_path / "pair"))
    settings = settings_for(root, domain)
    report = operations.backfill(settings, "net", T0 + 10 * STEP, T0 + 11 * STEP, NOW, 1)
    assert report.methods == {"pair": 2}
    path = root / report.products[0]
    data = read_packed(path)
    assert data.attrs["product"] == "surface_rain cappi_5000"
    pixels, state, _ = read_forecast(path, domain)
    assert pixels.shape == state.shape == (4, 96, 96)
    verified = catalog.read(sa.select(tables.cycles.c.verified))
    assert [row["verified"] for row in verified] == ["fully"] * 2


def test_training_windows_do_not_reach_over_a_gap_of_years(store, catalog, tmp_path):
    """Events of several years lie in one archive; only what is there takes memory."""
    archive = Archive(store, two_levels())
    put_moving_rain(archive, 20)
    put_moving_rain(archive, 20, T0 + timedelta(days=2200))
    series = _series(archive, archive.times(), two_levels(), length=7, crop=64)
    assert series.pixels.shape == (40, 2, 96, 96)
    assert series.train.max() <= 27 and not set(range(14, 20)) & set(series.train.tolist())


def test_a_gap_is_filled_in_every_channel_along_one_motion(store, catalog):
    archive = Archive(store, two_levels())
    put_moving_rain(archive, 3)
    truth = archive.read(T0 + STEP)
    found = {T0: archive.read(T0), T0 + STEP: None, T0 + 2 * STEP: archive.read(T0 + 2 * STEP)}
    filled = fill_gaps(found, 1, 85)[T0 + STEP]
    assert filled.pixels.shape == truth.pixels.shape
    for channel in range(2):
        stale = np.abs(found[T0].pixels[channel].astype(int) - truth.pixels[channel]).mean()
        assert np.abs(filled.pixels[channel].astype(int) - truth.pixels[channel]).mean() < 0.5 * stale


def test_a_model_of_one_channel_is_refused_and_the_flow_carries_both(root, store, catalog):
    domain = two_levels(model="convlstm")
    report = operations.backfill(settings_for(root, domain), "net", T0, T0, NOW, 1)
    assert report.methods == {"optical_flow": 1}
    data = read_packed(root / report.products[0])
    assert "product" in data.attrs["fallback_reason"] and "cappi_5000" in data.attrs["fallback_reason"]
    rain, above = (data[f"equivalent_reflectivity_factor{end}"].values for end in ("", "_cappi_5000"))
    assert rain.shape == above.shape == (4, 96, 96)
    assert (rain > 200).sum() > 2 * (above > 200).sum() > 0  # above 20 dBZ


def test_other_channels_than_those_of_the_archive_are_refused(store, catalog):
    ingest(two_levels(), store, catalog, T0, T0, NOW)
    other = synthetic_domain("net", grid=GRID, source=SOURCE, product=TWO[::-1], input_frames=3)
    with pytest.raises(SettingsError, match=r"domains\.net\.product"):
        read_sequence(Archive(Store(store.root), other), other, T0)


@pytest.mark.parametrize(
    ("product", "message"),
    [
        ("cappi", "expected surface_rain"),
        (["lowest", "lowest"], "different"),
        ([], "one to eight"),
        (["surface_rain", "vil"], "found 'vil'"),
    ],
)
def test_unknown_products_are_settings_errors(product, message):
    with pytest.raises(ValidationError, match=message):
        synthetic_domain("net", grid=GRID, source=SOURCE, product=product)


def test_gridded_sources_have_rain_only():
    with pytest.raises(ValidationError, match="synthetic fields are surface_rain"):
        synthetic_domain(product=["surface_rain", "column_max"])

"""Nowcasts of somebody else: read by what CF says of them, scored on the same pixels, refused with a reason."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import xarray as xr

from pipeline import operations
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import rate_table
from pipeline.storage import Store
from pipeline.verification import files
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with three verified forecasts, to be copied."""
    root = tmp_path_factory.mktemp("made") / "root"
    operations.backfill(settings_for(root, synthetic_domain(model="optical_flow")), "small", T0, T0 + 2 * STEP, NOW)
    return root


@pytest.fixture
def settings(root, made):
    shutil.copytree(made, root)
    return settings_for(root, synthetic_domain(model="optical_flow"))


def truth(settings, time):
    """Observed rates at the lead times of a forecast, mm/h."""
    domain = settings.domain("small")
    archive = Archive(Store(settings.root), domain)
    source = archive.source()
    rates = rate_table(domain.zr, domain.scale, source.drizzle_floor_mm_h)
    return source.grid, np.stack([rates[archive.read(time + n * STEP).rain] for n in range(1, 5)])


def write(path, settings, time=T0, member=None, **changes):
    """A perfect foreign forecast, from south to north, in km and m/s, with a member axis if asked for."""
    grid, rates = truth(settings, time)
    values = changes.pop("values", rates / 3.6e6)[:, ::-1]
    dims = ("time", "y", "x")
    if member is not None:
        values, dims = np.stack([values * f for f in member]), ("realization", *dims)
    valid = np.array([(time + n * STEP).replace(tzinfo=None) for n in range(1, 5)], "datetime64[ns]")
    attrs = {"standard_name": "lwe_precipitation_rate", "units": "m s-1"} | changes.pop("attrs", {})
    data = xr.Dataset(
        {"rain": (dims, values.astype(np.float64), attrs)},
        coords={
            "time": valid,
            "y": ("y", (grid.y[::-1] + changes.pop("shift", 0.0)) / 1000, {"units": "km"}),
            "x": ("x", grid.x / 1000, {"units": "km"}),
            "forecast_reference_time": (
                (),
                np.datetime64(time.replace(tzinfo=None), "ns"),
                {"standard_name": "forecast_reference_time"},
            ),
        },
    )
    data.to_netcdf(path, engine="h5netcdf")
    return path


def verify(settings, pattern, name="theirs"):
    return operations.verify(settings, "small", None, None, NOW, external=str(pattern), name=name)


def test_a_perfect_foreign_forecast_is_perfect_beside_ours(settings, tmp_path):
    write(tmp_path / "a.nc", settings)
    write(tmp_path / "b.nc", settings, T0 + STEP)
    report = verify(settings, tmp_path / "*.nc")
    assert report.verify.scored == 2 and report.problems == []
    (path,) = (settings.root / "verification/small/external").rglob("*.nc")
    data = files.read(path)
    assert data.attrs["methods"] == "theirs optical_flow last_frame"
    assert data["hits"].values[:, 0, :, 0].min() > 0
    for name in ("misses", "false_alarms"):
        assert data[name].values[:, 0].sum() == 0 < data[name].values[:, 1].sum()
    assert verify(settings, tmp_path / "*.nc").verify.unchanged == 2
    page = operations.report(settings, "small", None, None, tmp_path, NOW, pair=("theirs", "optical_flow"))
    assert any("theirs" in one for one in page.summary)
    assert list(page.headlines) == ["theirs.with.optical_flow (external)"]


def test_a_foreign_ensemble_gets_scores_of_probabilities(settings, tmp_path):
    write(tmp_path / "a.nc", settings, member=(0.5, 1.0, 1.5))
    assert verify(settings, tmp_path / "a.nc").verify.scored == 1
    page = operations.report(settings, "small", None, None, tmp_path, NOW, pair=("theirs", "optical_flow"))
    import pandas as pd

    table = pd.read_csv(page.scores)
    assert {"brier", "brier_skill", "roc_area", "crps", "crps_fair"} <= set(table.score)
    assert "Reliability of probabilities" in page.page.read_text()
    assert set(table[table.score == "crps"].lead_minutes) == {10, 20, 30}  # the lead times that have sums of windows
    crps = table[(table.score == "crps") & (table.pixel_set == "common")].set_index("lead_minutes").value
    # members at half, once and one and a half times the truth x: mean |.| is x/3, half the mean distance is 2x/9
    _, rates = truth(settings, T0)
    expected = (rates[:3] / 9).mean(axis=(1, 2))
    assert crps.to_numpy() == pytest.approx(expected, rel=0.05)  # but for members that fall under the drizzle floor


def test_missing_cells_and_missing_lead_times_of_theirs_are_no_forecast(settings, tmp_path):
    _, rates = truth(settings, T0)
    holed = rates / 3.6e6
    holed[0, :32] = np.nan
    holed[1] = np.nan
    write(tmp_path / "a.nc", settings, values=holed)
    assert verify(settings, tmp_path / "a.nc").verify.scored == 1
    (path,) = (settings.root / "verification/small/external").rglob("*.nc")
    pairs = files.read(path)["pairs"].values[0, 0]
    assert pairs[0].tolist() == [32 * 64, 64 * 64] and pairs[1].tolist() == [0, 64 * 64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 500.0}, "is on another grid: y runs from"),
        ({"attrs": {"units": "inch h-1"}}, "in 'inch h-1', expected mm h-1"),
        ({"attrs": {"standard_name": "air_temperature"}}, "no variable over time and two axes with a standard name"),
        ({"time": T0 - timedelta(days=3)}, "we have no forecast of small from 2024-05-29"),
    ],
    ids=["grid", "unit", "quantity", "time"],
)
def test_files_that_do_not_fit_are_named_with_the_reason_and_the_rest_goes_on(settings, tmp_path, changes, message):
    if "time" in changes:
        operations.ingest(settings, "small", changes["time"], changes["time"] + 5 * STEP, NOW)
    write(tmp_path / "bad.nc", settings, **changes)
    write(tmp_path / "good.nc", settings, T0 + STEP)
    (tmp_path / "junk.nc").write_bytes(b"not a file of anybody")
    report = verify(settings, tmp_path / "*.nc")
    assert report.verify.scored == 1
    assert any("bad.nc" in one and message in one for one in report.problems)
    assert any("junk.nc is not a NetCDF file that can be read" in one for one in report.problems)


def test_negative_rain_and_other_shapes_are_refused(settings, tmp_path):
    _, rates = truth(settings, T0)
    write(tmp_path / "a.nc", settings, values=-rates / 3.6e6)
    assert "negative rain rates" in verify(settings, tmp_path / "a.nc").problems[0]
    with xr.open_dataset(write(tmp_path / "b.nc", settings), engine="h5netcdf") as data:
        data.load().isel(x=slice(0, 40)).to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    assert "64 x 40 cells, the frames have 64 x 64" in verify(settings, tmp_path / "c.nc").problems[0]


@pytest.mark.parametrize("name", ["", "a/b", "<b>", "optical flow", "x" * 50])
def test_hostile_names_are_refused(settings, tmp_path, name):
    with pytest.raises(SettingsError, match="--name"):
        verify(settings, tmp_path / "*.nc", name)


def test_a_name_of_ours_and_a_pattern_without_files(settings, tmp_path):
    with pytest.raises(SettingsError, match="no file fits"):
        verify(settings, tmp_path / "*.nc")
    write(tmp_path / "a.nc", settings)
    with pytest.raises(SettingsError, match="a method of ours has this name"):
        verify(settings, tmp_path / "a.nc", "last_frame")


@pytest.mark.parametrize(
    ("standard_name", "units", "factor"),
    [
        ("rainfall_flux", "kg m-2 s-1", 1 / 3600),
        ("rainfall_rate", "mm h-1", 1.0),
        ("equivalent_reflectivity_factor", "dBZ", None),
    ],
)
def test_units_of_other_conventions(settings, tmp_path, standard_name, units, factor):
    _, rates = truth(settings, T0)
    with np.errstate(divide="ignore"):
        values = rates * factor if factor else np.maximum(10 * np.log10(200 * rates**1.6), -32)
    write(tmp_path / "a.nc", settings, values=values, attrs={"standard_name": standard_name, "units": units})
    assert verify(settings, tmp_path / "a.nc").problems == []
    (path,) = (settings.root / "verification/small/external").rglob("*.nc")
    data = files.read(path)
    assert data["misses"].values[:, 0].sum() == 0 and data["false_alarms"].values[:, 0].sum() == 0


@pytest.mark.parametrize("value", [np.inf, 1e30 / 3.6e6])
def test_what_cannot_be_rain_is_refused(settings, tmp_path, value):
    _, rates = truth(settings, T0)
    write(tmp_path / "a.nc", settings, values=np.full_like(rates, value, np.float64))
    assert "more than 2500 is no rain" in verify(settings, tmp_path / "a.nc").problems[0]


def test_nothing_but_missing_values_a_time_that_is_none_and_a_second_file_of_one_time(settings, tmp_path):
    _, rates = truth(settings, T0)
    write(tmp_path / "a.nc", settings, values=np.full_like(rates, np.nan))
    assert "has no value at our lead times" in verify(settings, tmp_path / "a.nc").problems[0]
    with xr.open_dataset(write(tmp_path / "b.nc", settings, T0 + STEP), engine="h5netcdf") as data:
        timeless = data.load().assign_coords(
            forecast_reference_time=((), np.datetime64("NaT", "ns"), {"standard_name": "forecast_reference_time"})
        )
        data.to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
        timeless.to_netcdf(tmp_path / "d.nc", engine="h5netcdf")
    report = verify(settings, tmp_path / "[bcd].nc")
    assert report.verify.scored == 1
    assert any("c.nc is of 2024-06-01T02:10:00Z, as" in one for one in report.problems)
    assert any("d.nc: its forecast_reference_time is no time" in one for one in report.problems)


def test_a_product_of_another_place_is_not_scored_cell_by_cell(settings, tmp_path):
    moved = synthetic_domain(model="optical_flow")
    moved = moved.model_copy(update={"grid": moved.grid.model_copy(update={"centre": (6.0, 51.0)})})
    other = settings_for(tmp_path / "other", moved)
    operations.backfill(other, "small", T0, T0, NOW)
    report = verify(settings, tmp_path / "other/products/**/*_r1.nc", "other")
    assert report.verify.scored == 0 and "is on another grid" in report.problems[0]


def test_a_projection_that_puts_the_cells_elsewhere_is_another_grid(settings, tmp_path):
    from pyproj import CRS

    there = CRS.from_user_input("+proj=laea +lat_0=51 +lon_0=6 +ellps=WGS84 +units=m +type=crs").to_cf()
    with xr.open_dataset(write(tmp_path / "a.nc", settings), engine="h5netcdf") as data:
        data.load().assign(crs=((), 0, there)).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    assert "by its projection a corner lies" in verify(settings, tmp_path / "b.nc").problems[0]


def test_a_product_of_another_root_comes_back_pixel_by_pixel(settings, tmp_path):
    other = settings_for(tmp_path / "other", synthetic_domain(model="rover_linear"))
    operations.backfill(other, "small", T0, T0, NOW)
    assert verify(settings, tmp_path / "other/products/**/*_r1.nc", "rover").verify.scored == 1
    (path,) = (settings.root / "verification/small/external").rglob("*.nc")
    (own,) = (tmp_path / "other/verification/small/hindcast/rover_linear").glob("*.nc")
    assert (files.read(path)["hits"].values[:, 0] == files.read(own)["hits"].values[:, 0]).all()

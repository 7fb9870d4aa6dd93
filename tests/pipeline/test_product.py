"""The forecast file: packing, CF, orientation, digest."""

import shutil
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import packing, product, times
from pipeline.domain import ZR, Scale
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import ECHO, NO_COVERAGE, NO_ECHO, rate_table, reflectivity_of_pixel
from pipeline.frames.sequences import InputSequence
from pipeline.grids import Grid, centred_grid
from pipeline.sources.readers import READERS
from tests.conftest import synthetic_domain

TIME = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
LCC = centred_grid("+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m", (40, 60), 2000.0, (5, 51))
LATLON = Grid("EPSG:4326", (40, 60), -100.0, 45.0, 0.02, 0.02)


def sequence(grid: Grid, pixels: np.ndarray, floor: float = 0.1, interval: float = 0.0) -> InputSequence:
    state = np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8)
    return InputSequence(
        TIME, pixels[None, None], state[None], (TIME,), (), (), ("0" * 64,), 0.5, FrameSource(grid, floor, interval)
    )


def corner_rain(grid: Grid) -> np.ndarray:
    """Rain in the north-west corner only: no flip and no transposition looks the same."""
    pixels = np.zeros(grid.shape, np.uint8)
    pixels[2:8, 3:14] = 160
    return pixels


def write(
    path, grid: Grid, domain=None, leads: int = 12, pixels=None, issue_time=TIME, interval=0.0, exceedance=None
) -> str:
    domain = domain or synthetic_domain(lead_frames=leads)
    pixels = corner_rain(grid) if pixels is None else pixels
    forecast = np.repeat(pixels[None], leads, axis=0)
    state = product.lead_states(forecast, np.ones(grid.shape, bool), np.zeros(forecast.shape, bool))
    state[:, -3:] = NO_COVERAGE
    frames = product.ForecastFrames(
        forecast[:, None], state, "convlstm", "f" * 64, "", "convlstm", exceedance=exceedance or {}
    )
    built = product.build(
        domain, sequence(grid, pixels, interval=interval), frames, product.Identity(TIME, "hindcast", 1, issue_time)
    )
    return packing.write(built, path)


def real_grids(sample_data) -> dict[str, Grid]:
    one = {
        "bom_rainfields": "bom_66_prcp-c10_20201031/66_20201031_040000.prcp-c10.nc",
        "knmi_hdf5": "knmi_nl25_20100826/RAD_NL25_RAP_5min_201008260105.h5",
        "mch_gif": "mch_aqc_20160711/AQC161932045V_00005.801.gif",
        "fmi_pgm": "fmi_pgm_20160928/201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz",
    }
    return {name: READERS[name].read(sample_data / file).grid.coarsened(10) for name, file in one.items()}


@pytest.mark.parametrize("grid", [LCC, LATLON], ids=["lcc", "latlon"])
def test_compliance_checker_finds_nothing_to_correct(tmp_path, grid):
    write(tmp_path / "p.nc", grid)
    assert_compliant(tmp_path / "p.nc")


def test_compliance_on_the_grids_of_the_real_sources(tmp_path, sample_data):
    for name, grid in real_grids(sample_data).items():
        write(tmp_path / f"{name}.nc", grid, interval=600.0)
        assert_compliant(tmp_path / f"{name}.nc")


@pytest.mark.parametrize(
    ("crs", "spacing", "unit", "named"),
    [
        ("EPSG:3857", 2000.0, "m", "mercator"),
        ("+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5 +units=km", 2.0, "km", "lambert_conformal_conic"),
        ("+proj=lcc +lat_1=51 +lat_0=51 +lon_0=5 +units=us-ft", 6561.7, "US_survey_foot", "lambert_conformal_conic"),
        ("+proj=stere +lat_0=90 +lon_0=5 +k=0.97", 2000.0, "m", "polar_stereographic"),
        (
            "+proj=ob_tran +o_proj=longlat +o_lat_p=39 +o_lon_p=0 +lon_0=5",
            0.02,
            "degrees",
            "rotated_latitude_longitude",
        ),
        ("EPSG:28992", 2000.0, "m", None),  # an oblique stereographic of two steps, which CF does not know
    ],
    ids=["web mercator", "km", "feet", "scale at the pole", "rotated", "no name in CF"],
)
def test_the_product_is_compliant_on_maps_of_all_kinds(tmp_path, monkeypatch, crs, spacing, unit, named):
    if named == "mercator":
        appendix = pytest.importorskip("compliance_checker.cf.appendix_f")
        # version 6.1 has a word without its comma there, and asks for attributes of one letter
        required = [("longitude_of_projection_origin",), *appendix.grid_mapping_dict17["mercator"][1:]]
        monkeypatch.setitem(appendix.grid_mapping_dict17, "mercator", required)
    grid = centred_grid(crs, (40, 60), spacing, (5, 51))
    write(tmp_path / "p.nc", grid, interval=600.0)
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf", decode_coords=False) as data:
        assert data.x.attrs["units"] == data.y.attrs["units"] == unit
        assert data.crs.attrs.get("grid_mapping_name") == named
        assert data.rainfall_rate.attrs.get("grid_mapping") == ("crs" if named else None)
        # the places that the file gives are the same by its axes and by its longitudes and latitudes
        west = Grid(data.crs.attrs["crs_wkt"], (1, 1), float(data.x[3]), float(data.y[30]), 1, 1).lon_lat()
        at = float(data.lon[30, 3]), float(data.lat[30, 3])
        assert (west[0][0, 0], west[1][0, 0]) == pytest.approx(at, abs=1e-4)
    assert_compliant(tmp_path / "p.nc")


def assert_compliant(path):
    pytest.importorskip("compliance_checker", reason="comparison package; `make test` installs it (extra `compare`)")
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    report = path.with_suffix(".txt")
    passed, errors = ComplianceChecker.run_checker(
        str(path), ["cf:1.8"], verbose=1, criteria="strict", output_filename=str(report), output_format="text"
    )
    assert passed and not errors, report.read_text()


@pytest.mark.parametrize("grid", [LCC, LATLON], ids=["lcc", "latlon"])
def test_north_is_up_in_rasterio_and_xarray(tmp_path, grid):
    rasterio = pytest.importorskip("rasterio", reason="`make test` installs it (extra `dev`)")
    write(tmp_path / "p.nc", grid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(f"netcdf:{tmp_path / 'p.nc'}:rainfall_rate") as image:
            band = image.read(1)
            assert image.transform.e < 0 < image.transform.a  # rows run southward, columns eastward
            assert image.transform.c == pytest.approx(grid.west - grid.dx / 2)
            assert image.transform.f == pytest.approx(grid.north + grid.dy / 2)
            assert image.crs.is_geographic == grid.is_geographic
            assert (band[2:8, 3:14] > 0).all() and band[20:30].max() == 0
            assert image.scales[0] == pytest.approx(0.02) and image.nodata == -32768
    with xr.open_dataset(tmp_path / "p.nc", engine="netcdf4") as data:
        y, x = ("latitude", "longitude") if grid.is_geographic else ("y", "x")
        wet = data.rainfall_rate.isel(time=0).where(lambda v: v > 0, drop=True)
        assert float(wet[y].min()) > float(data[y].median())  # the rain lies in the north
        assert float(wet[x].max()) < float(data[x].median())  # and in the west


def test_times_and_values_read_back_with_their_units(tmp_path):
    write(tmp_path / "p.nc", LCC)
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf", decode_timedelta=True) as data:
        assert {"forecast_reference_time", "forecast_period", "lat", "lon"} <= set(data.rainfall_rate.coords)
        assert data.forecast_reference_time.values == times.to_datetime64(TIME)
        assert data.time.values[0] == np.datetime64("2024-06-01T02:10")
        assert data.forecast_period.values[-1] == np.timedelta64(120, "m")
        rate = float(data.rainfall_rate[0, 4, 6])
        assert rate == pytest.approx(rate_table(ZR(), Scale(), 0.1)[160], abs=0.01)
        assert float(data.rainfall_rate[0, 20, 30]) == 0
        assert np.isnan(data.rainfall_rate[0, -1]).all()
        # steady rain: the amounts are the rate times the time since the reference time, with their intervals
        for n, end in enumerate(("2024-06-01T02:30", "2024-06-01T03:00", "2024-06-01T04:00")):
            assert float(data.rainfall_amount[n, 4, 6]) == pytest.approx(rate * (0.5, 1, 2)[n], abs=0.05)
            assert (
                data.accumulation_time_bounds.values[n] == [np.datetime64("2024-06-01T02:00"), np.datetime64(end)]
            ).all()
            assert data.accumulation_time.values[n] == np.datetime64(end)
        assert np.isnan(data.rainfall_amount[:, -1]).all() and data.rainfall_amount.shape[0] == 3


def test_a_full_disk_is_an_error_and_no_crash():
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), LCC)


def test_operator_and_terms_of_the_data_are_in_the_product(tmp_path):
    write(tmp_path / "p.nc", LCC, synthetic_domain(lead_frames=12, institution="Office", license="CC BY 4.0, Radar Co"))
    attrs = packing.read_packed(tmp_path / "p.nc").attrs
    assert (attrs["institution"], attrs["license"]) == ("Office", "CC BY 4.0, Radar Co")


def test_amounts_of_instants_and_of_means(tmp_path):
    domain = synthetic_domain(lead_frames=6)
    pixels = corner_rain(LCC)
    forecast = np.repeat(np.zeros_like(pixels)[None], 6, axis=0)  # the rain stops at once
    state = product.lead_states(forecast, np.ones(LCC.shape, bool), np.zeros(forecast.shape, bool))
    frames = product.ForecastFrames(forecast[:, None], state, "convlstm", "", "", "convlstm")
    rate = rate_table(ZR(), Scale(), 0.1)[160]
    identity = product.Identity(TIME, "hindcast", 1, TIME)
    for interval, expected in ((0.0, rate / 12), (600.0, 0.0)):  # half of ten minutes; means over past minutes add up
        built = product.build(domain, sequence(LCC, pixels, interval=interval), frames, identity)
        amount = built["rainfall_amount"].values[0, 4, 6] * product.ACCUMULATION_STEP_MM
        assert amount == pytest.approx(expected, abs=0.03)
        assert built["rainfall_rate"].attrs.get("cell_methods") == ("time: mean" if interval else None)
        assert ("time_bounds" in built) == bool(interval)


def moving(grid: Grid, frames: int, first: int = 0) -> np.ndarray:
    """A line of rain, a few cells wide, that moves eastward by six cells a frame."""
    y, x = np.indices(grid.shape)
    centres = 6 * (np.arange(frames) + first) + 6
    away = [(x - centre) ** 2 / 8 + (y - 20) ** 2 / 72 for centre in centres]
    return (200 * np.exp(-np.stack(away))).astype(np.uint8)


@pytest.mark.parametrize(("method", "stripes"), [("optical_flow", False), ("last_frame", True)])
def test_moving_rain_leaves_a_trace_and_a_standing_forecast_does_not_move(method, stripes):
    domain = synthetic_domain(lead_frames=4)
    observed, forecast = moving(LCC, 4), moving(LCC, 4, 4)
    state = np.where(observed > 0, ECHO, NO_ECHO).astype(np.uint8)
    instants = tuple(TIME - n * domain.cadence for n in (3, 2, 1, 0))
    source = FrameSource(LCC, 0.1, 0.0)
    given = InputSequence(TIME, observed[:, None], state, instants, (), (), ("0" * 64,) * 4, 0.5, source)
    frames = product.ForecastFrames(forecast[:, None], np.full_like(forecast, ECHO), method, "", "", "convlstm")
    built = product.build(domain, given, frames, product.Identity(TIME, "hindcast", 1, TIME))
    trace = built["rainfall_amount"].values[0, 20, 30:42] * product.ACCUMULATION_STEP_MM
    assert trace.mean() > 1
    assert (trace.min() < 0.1 * trace.max()) == stripes
    assert (trace.min() > 0.8 * trace.max()) == (not stripes)


@pytest.mark.parametrize(
    ("lead_frames", "minutes"), [(2, [20]), (3, [30]), (11, [30, 60]), (12, [30, 60, 120]), (20, [30, 60, 120])]
)
def test_amounts_reach_as_far_as_the_forecast(lead_frames, minutes):
    domain = synthetic_domain(lead_frames=lead_frames)
    assert [n * domain.cadence_minutes for n in product.amount_steps(domain)] == minutes


def test_probabilities_are_written_where_covered_and_the_file_stays_compliant(tmp_path):
    chance = np.zeros((4, *LCC.shape), np.uint8)
    chance[:, 2:8, 3:14] = 204
    write(tmp_path / "p.nc", LCC, leads=4, exceedance={0.5: chance, 5.0: chance // 2})
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf") as data:
        probability = data.probability_of_exceedance
        assert probability.dims == ("threshold", "time", "y", "x") and probability.attrs["units"] == "1"
        assert data.threshold.values.tolist() == [0.5, 5.0] and data.threshold.attrs["units"] == "mm h-1"
        assert float(probability.sel(threshold=0.5)[3, 4, 6]) == pytest.approx(0.8)
        assert float(probability.sel(threshold=5.0)[3, 4, 6]) == pytest.approx(0.4)
        assert float(probability[0, 0, 20, 20]) == 0 and np.isnan(probability[:, :, -1]).all()
    assert_compliant(tmp_path / "p.nc")


@pytest.mark.parametrize("zr", [ZR(a=200, b=1.6), ZR(a=300, b=1.4), ZR(a=58.53, b=1.56), ZR(a=250, b=1.2)])
def test_packing_saturates_at_pixel_255(tmp_path, zr):
    pixels = np.full(LCC.shape, 255, np.uint8)
    domain = synthetic_domain(zr=zr.model_dump(), lead_frames=1)
    write(tmp_path / "p.nc", LCC, domain, 1, pixels)
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf") as data:
        expected = min(float(rate_table(zr, Scale(), 0.1)[255]), 32767 * 0.02)
        assert float(data.rainfall_rate.max()) == pytest.approx(expected, abs=0.011)
        assert float(data.equivalent_reflectivity_factor.max()) == pytest.approx(60.0, abs=0.05)


def test_pack_saturates_both_ways_and_keeps_nan():
    assert packing.pack(np.array([1e9, -1e9, np.nan, 0.03]), 0.02).tolist() == [32767, -32767, -32768, 2]


def test_every_pixel_comes_back_exactly(tmp_path):
    pixels = np.zeros(LCC.shape, np.uint8)
    pixels.ravel()[:256] = np.arange(256)
    write(tmp_path / "p.nc", LCC, leads=2, pixels=pixels)
    got, state, _ = product.read_forecast(tmp_path / "p.nc", synthetic_domain())
    assert np.array_equal(got[1][state[1] != NO_COVERAGE], pixels[state[1] != NO_COVERAGE])
    with pytest.raises(ValueError, match="dBZ scale"):
        product.read_forecast(tmp_path / "p.nc", synthetic_domain(scale={"dbz_max": 70.0}))


def test_no_echo_is_the_bottom_of_the_scale_not_missing(tmp_path):
    write(tmp_path / "p.nc", LCC)
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf") as data:
        assert float(data.equivalent_reflectivity_factor[0, 20, 30]) == pytest.approx(
            float(reflectivity_of_pixel(np.zeros(1, np.uint8), Scale())[0])
        )


def test_digest_is_of_the_content_and_not_of_the_moment(tmp_path):
    first = write(tmp_path / "a.nc", LCC)
    later = write(tmp_path / "b.nc", LCC, issue_time=datetime(2025, 1, 1, tzinfo=UTC))
    pixels = corner_rain(LCC)
    pixels[0, 0] = 200
    assert first == later != write(tmp_path / "c.nc", LCC, pixels=pixels)
    assert packing.read_digest(tmp_path / "a.nc") == first  # the same after reading back
    shutil.copy(tmp_path / "a.nc", tmp_path / "d.nc")
    import h5py

    with h5py.File(tmp_path / "d.nc", "r+") as file:
        file["rainfall_rate"][0, 5, 5] = 1
    with pytest.raises(ValueError, match="does not have the content"):
        packing.read_digest(tmp_path / "d.nc")


def test_netcdf4_library_reads_the_file_too(tmp_path):
    write(tmp_path / "p.nc", LCC)
    script = "import netCDF4, sys; d = netCDF4.Dataset(sys.argv[1]); print(float(d['rainfall_rate'][0, 4, 6]) > 1)"
    # a process of its own: two HDF5 libraries in one process are asking for trouble
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "p.nc")], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr

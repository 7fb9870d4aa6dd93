"""The six readers on real files: values, grids, times, and the three kinds of cell."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.readers import READERS
from pipeline.sources.synthetic import write_composite

# reader, file, valid time, shape, share not observed, largest value, smallest rate, a corner (lon, lat)
CASES = {
    "bom_rainfields": (
        "bom_66_prcp-c10_20201031/66_20201031_040000.prcp-c10.nc",
        datetime(2020, 10, 31, 4, 0, tzinfo=UTC), (512, 512), 0.0, 91.8, 0.3, (151.93, -26.56),
    ),
    "knmi_hdf5": (
        "knmi_nl25_20100826/RAD_NL25_RAP_5min_201008260105.h5",
        datetime(2010, 8, 26, 1, 5, tzinfo=UTC), (765, 700), 0.744, None, 0.12, (0.0, 55.97),
    ),
    "mch_gif": (
        "mch_aqc_20160711/AQC161932045V_00005.801.gif",
        datetime(2016, 7, 11, 20, 45, tzinfo=UTC), (640, 710), 0.296, None, 0.001, (2.7, 49.4),
    ),
    "fmi_pgm": (
        "fmi_pgm_20160928/201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz",
        datetime(2016, 9, 28, 14, 45, tzinfo=UTC), (1226, 760), 0.243, None, 0.1, (15.1, 69.0),
    ),
    "odim_comp": (
        "volumes/odim_h5/belgium.comp.hdf",
        datetime(2019, 6, 6, 0, 0, tzinfo=UTC), (700, 700), 0.274, None, 0.0, (-0.9, 53.6),
    ),
    "mrms_grib2": (
        "mrms_preciprate_20190610/PrecipRate_00.00_20190610-000000.grib2",
        datetime(2019, 6, 10, 0, 0, tzinfo=UTC), (3500, 7000), 0.357, 148.8, 0.1, (-129.995, 54.995),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reader_on_a_real_file(name, sample_data):
    file, time, shape, missing, largest, smallest, corner = CASES[name]
    reader, path = READERS[name], sample_data / file
    field = reader.read(path)
    assert field.valid_time == time
    assert reader.time_of(path.name) in (time, None if name == "odim_comp" else time)
    assert field.values.shape == field.grid.shape == shape
    assert field.values.dtype == np.float32
    assert np.isnan(field.values).mean() == pytest.approx(missing, abs=0.002)
    assert field.smallest_rate_mm_h == pytest.approx(smallest, abs=0.001)
    if largest is not None:
        assert np.nanmax(field.values) == pytest.approx(largest, rel=0.01)
    lon, lat = Grid(field.grid.crs, (1, 1), field.grid.west, field.grid.north, 1, 1).lon_lat()
    assert (lon[0, 0], lat[0, 0]) == pytest.approx(corner, abs=0.25)
    # north up: the last row lies south of the first
    south = Grid(field.grid.crs, (1, 1), field.grid.west, field.grid.y[-1], 1, 1).lon_lat()[1][0, 0]
    assert south < lat[0, 0] - 1


def test_bom_rates_are_the_accumulation_over_ten_minutes(sample_data):
    import h5py

    path = sample_data / CASES["bom_rainfields"][0]
    with h5py.File(path) as file:
        millimetres = file["precipitation"][100:110, 200:210] * 0.05
    np.testing.assert_allclose(
        READERS["bom_rainfields"].read(path).values[100:110, 200:210], millimetres * 6, rtol=1e-5
    )


def test_bom_codes_that_are_negative_are_not_observed(sample_data):
    # this file has a -2, which its attributes do not explain, beside the _FillValue -1
    field = READERS["bom_rainfields"].read(sample_data / "bom_66_prcp-c10_20201031/66_20201031_004000.prcp-c10.nc")
    assert np.isnan(field.values).any() and np.nanmin(field.values) >= 0


def test_knmi_corners_are_those_in_the_file(sample_data):
    # geo_product_corners: 0.000E 49.362N, 0.000E 55.974N, 10.856E 55.389N, 9.009E 48.895N (outer corners)
    grid = READERS["knmi_hdf5"].read(sample_data / CASES["knmi_hdf5"][0]).grid
    half = grid.dx / 2
    corners = {
        (0.0, 55.974): (grid.west - half, grid.north + half),
        (10.856, 55.389): (grid.x[-1] + half, grid.north + half),
        (9.009, 48.895): (grid.x[-1] + half, grid.y[-1] - half),
    }
    for (lon, lat), (x, y) in corners.items():
        got = Grid(grid.crs, (1, 1), x, y, 1, 1).lon_lat()
        assert (got[0][0, 0], got[1][0, 0]) == pytest.approx((lon, lat), abs=0.002)


def test_mch_values_of_palette_indices(sample_data):
    from PIL import Image

    path = sample_data / CASES["mch_gif"][0]
    index = np.array(Image.open(path))
    values = READERS["mch_gif"].read(path).values
    assert (values[index <= 1] == 0).all()
    assert np.isnan(values[index >= 251]).all() and not np.isnan(values[index < 251]).any()
    at = index == 120
    assert at.any()
    assert values[at][0] == pytest.approx(12 * (10 ** ((120 - 71.5) / 20) / 316) ** (1 / 1.5), rel=1e-5)


def test_fmi_no_echo_and_reflectivity(sample_data):
    import gzip

    path = sample_data / CASES["fmi_pgm"][0]
    raw = np.frombuffer(gzip.decompress(path.read_bytes())[-1226 * 760 :], np.uint8).reshape(1226, 760)
    dbz = READERS["fmi_pgm"].read(path).values
    assert (dbz[raw == 0] == -32).all() and np.isnan(dbz[raw == 255]).all()
    assert dbz[raw == 124][0] == 30.0


def test_odim_codes_survive_a_round_trip(tmp_path):
    grid = Grid("+proj=laea +lat_0=50 +lon_0=5 +units=m +type=crs", (3, 4), 0.0, 9000.0, 1000.0, 1000.0)
    rate = np.array([[0, 0.5, np.nan, 30], [0, 0, 1, 2], [np.nan, 0.01, 100, 0]], np.float32)
    time = datetime(2024, 1, 1, 0, 10, tzinfo=UTC)
    write_composite(tmp_path / "c_20240101T001000Z.h5", rate, grid, time)
    field = READERS["odim_comp"].read(tmp_path / "c_20240101T001000Z.h5")
    np.testing.assert_allclose(field.values, rate, atol=0.005)
    assert field.valid_time == time
    assert (field.grid.west, field.grid.north, field.grid.dx) == pytest.approx((0.0, 9000.0, 1000.0), abs=1e-3)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("damage", ["truncated", "foreign", "one byte"])
def test_damaged_files_are_bad_input_that_names_the_file(name, damage, sample_data, tmp_path):
    source = sample_data / CASES[name][0]
    raw = source.read_bytes()
    content = {
        "truncated": raw[: len(raw) * 6 // 10],
        "foreign": b"<html>503 try later</html>" * 40,
        "one byte": b"\x89",
    }
    path = tmp_path / source.name
    path.write_bytes(content[damage])
    with pytest.raises(BadInput, match=path.name.split(".")[0][:20]):
        READERS[name].read(path)


def test_a_reader_refuses_the_files_of_another(sample_data, tmp_path):
    swapped = {"bom_rainfields": "knmi_hdf5", "knmi_hdf5": "bom_rainfields", "odim_comp": "bom_rainfields"}
    for name, other in swapped.items():
        with pytest.raises(BadInput):
            READERS[name].read(sample_data / CASES[other][0])


@pytest.mark.parametrize(
    ("name", "file", "time"),
    [
        ("odim_comp", "T_PAAH21_C_EUOC_20240101001500.hdf", "2024-01-01T00:15:00"),
        ("odim_comp", "OPERA@20240101T0015@0@DBZH.h5", "2024-01-01T00:15:00"),
        ("mrms_grib2", "MRMS_PrecipRate_00.00_20240101-001436.grib2.gz", "2024-01-01T00:14:36"),
        ("mch_gif", "AQC161932045V_00005.801.gif", "2016-07-11T20:45:00"),
        ("mch_gif", "AQC169992045V_00005.801.gif", None),
        ("bom_rainfields", "README.md", None),
        ("bom_rainfields", "66_20201331_000000.prcp-c10.nc", None),
    ],
)
def test_times_from_names(name, file, time):
    found = READERS[name].time_of(file)
    assert (None if found is None else found.strftime("%Y-%m-%dT%H:%M:%S")) == time


def test_every_file_of_the_sequences_is_recognised(sample_data):
    folders = {
        "bom_66": "bom_rainfields",
        "knmi": "knmi_hdf5",
        "mch": "mch_gif",
        "fmi": "fmi_pgm",
        "mrms": "mrms_grib2",
    }
    for prefix, name in folders.items():
        files = [p for folder in sample_data.glob(f"{prefix}*") for p in folder.iterdir()]
        assert files and all(READERS[name].time_of(Path(p).name) for p in files)

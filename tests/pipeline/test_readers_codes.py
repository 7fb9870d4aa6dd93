"""Dry, wet and not observed: no code of one is taken for another, and what may be either is refused or settled."""

import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.grids import Grid
from pipeline.sources.readers import READERS, Reading
from pipeline.sources.synthetic import write_composite

TIME = datetime(2024, 1, 1, 0, 10, tzinfo=UTC)
GRID = Grid("+proj=laea +lat_0=50 +lon_0=5 +units=m +type=crs", (4, 5), 0.0, 9000.0, 1000.0, 1000.0)
NAME = "c_20240101T001000Z.h5"
DRY, NO_DATA = Reading(shared_code="dry"), Reading(shared_code="no_data")


def odim(folder: Path, raw, quantity="RATE", **coding) -> Path:
    """A composite with ``raw`` as it is and ``coding`` in its ``what``; None takes an attribute away."""
    path = folder / NAME
    raw = np.asarray(raw)
    grid = Grid(GRID.crs, raw.shape, GRID.west, GRID.north, GRID.dx, GRID.dy)
    write_composite(path, np.zeros(raw.shape, np.float32), grid, TIME)
    with h5py.File(path, "r+") as file:
        del file["dataset1/data1/data"]
        file["dataset1/data1/data"] = raw
        what = file["dataset1/data1/what"].attrs
        for key, value in {"quantity": quantity, "gain": 1.0, "offset": 0.0, **coding}.items():
            if value is None:
                del what[key]
            else:
                what[key] = value
    return path


def read(path: Path, reading: Reading = Reading()) -> np.ndarray:
    return READERS["odim_comp"].read(path, reading).values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_odim_codes_are_found_in_the_precision_of_the_file(tmp_path, dtype):
    # -9999.9 is no float32: compared as a double it is never found
    raw = np.array([[-9999.9, -8888.8, 0.5, 0.0]], dtype)
    rate = read(odim(tmp_path, raw, nodata=-9999.9, undetect=-8888.8))
    np.testing.assert_allclose(rate, [[np.nan, 0, 0.5, 0]])


def test_odim_values_that_nobody_declared_are_not_observed(tmp_path):
    raw = np.array([[-1, -3, -99, -999, np.nan, np.inf, -np.inf, 0, 2]], np.float64)
    nan = np.nan
    rate = read(odim(tmp_path, raw, nodata=-9e6, undetect=-8e6))
    np.testing.assert_array_equal(rate, [[nan, nan, nan, nan, nan, nan, nan, 0, 2]])
    dbz = np.array([[-99, -999, -9999, 9999, np.nan, -np.inf, -31, -8e6, 40]], np.float64)
    values = read(odim(tmp_path, dbz, "DBZH", nodata=-9e6, undetect=-8e6))
    np.testing.assert_array_equal(values, [[nan, nan, nan, nan, nan, nan, -31, -32, 40]])


def test_odim_nan_as_a_declared_code_means_what_the_file_says(tmp_path):
    raw = np.array([[np.nan, -1, 2.0]], np.float32)
    np.testing.assert_array_equal(read(odim(tmp_path, raw, nodata=-1.0, undetect=np.nan)), [[0, np.nan, 2]])
    np.testing.assert_array_equal(read(odim(tmp_path, raw, nodata=np.nan, undetect=-1.0)), [[np.nan, 0, 2]])


SHARED = {
    "one code": (np.array([[0, 0, 0, 20]], np.uint8), {"nodata": 0.0, "undetect": 0.0}),
    "NaN for both": (np.array([[np.nan, np.nan, np.nan, 20]]), {"nodata": np.nan, "undetect": np.nan}),
    "NaN for no rain": (np.array([[np.nan, np.nan, np.nan, 20]]), {"nodata": -1.0, "undetect": None}),
    "nodata for no rain": (np.array([[-1.0, -1.0, -1.0, 20]]), {"nodata": -1.0, "undetect": None}),
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("dry_day", [False, True])
@pytest.mark.parametrize("quantity", ["RATE", "DBZH"])
def test_dry_and_not_observed_in_one_code_are_refused_or_settled(tmp_path, case, dry_day, quantity):
    raw, coding = SHARED[case]
    raw = np.full_like(raw, raw[0, 0]) if dry_day else raw
    path = odim(tmp_path, raw, quantity, **coding)
    with pytest.raises(BadInput, match=r"dry cannot be told from not observed: set source\.shared_code") as refused:
        read(path)
    assert path.name in str(refused.value) and ("100.0%" if dry_day else "75.0%") in str(refused.value)
    nothing = {"RATE": 0, "DBZH": -32}[quantity]
    wet = nothing if dry_day else 20
    np.testing.assert_array_equal(read(path, DRY), [[nothing, nothing, nothing, wet]])
    last = np.nan if dry_day else 20
    np.testing.assert_array_equal(read(path, NO_DATA), [[np.nan, np.nan, np.nan, last]])


def test_nan_beside_plain_dry_values_is_no_data(tmp_path):
    raw = np.array([[np.nan, 0.0, 0.0, 3.0]], np.float32)
    path = odim(tmp_path, raw, nodata=None, undetect=None)
    for reading in (Reading(), DRY, NO_DATA):  # the file is plain, whatever the settings say
        np.testing.assert_array_equal(read(path, reading), raw)


def mrms(sample_data, folder: Path, rates, bitmap=False) -> Path:
    """A small message like a real one."""
    import eccodes

    rates = np.asarray(rates, np.float64)
    real = (sample_data / "mrms_preciprate_20190610/PrecipRate_00.00_20190610-000000.grib2").read_bytes()
    handle = eccodes.codes_new_from_message(real)
    eccodes.codes_set(handle, "packingType", "grid_simple")
    for key, value in {"Ni": rates.shape[1], "Nj": rates.shape[0], "bitmapPresent": int(bitmap)}.items():
        eccodes.codes_set(handle, key, value)
    if bitmap:
        eccodes.codes_set(handle, "missingValue", 9999.0)
    eccodes.codes_set(handle, "bitsPerValue", 24)
    eccodes.codes_set_values(handle, rates.ravel())
    path = folder / "MRMS_PrecipRate_00.00_20190610-000000.grib2"
    path.write_bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    return path


def test_mrms_negative_codes_and_gaps_are_not_observed(sample_data, tmp_path):
    rates = [[-3, -1, 0, 0.5], [-99, -999, 12, 0]]
    got = READERS["mrms_grib2"].read(mrms(sample_data, tmp_path, rates), Reading()).values
    np.testing.assert_allclose(got, [[np.nan, np.nan, 0, 0.5], [np.nan, np.nan, 12, 0]], atol=1e-3)
    rates = [[9999, 0, 0, 0.5], [9999, -1, 12, 0]]
    got = READERS["mrms_grib2"].read(mrms(sample_data, tmp_path, rates, bitmap=True), Reading()).values
    np.testing.assert_allclose(got, [[np.nan, 0, 0, 0.5], [np.nan, np.nan, 12, 0]], atol=1e-3)


def changed_copy(source: Path, folder: Path) -> Path:
    path = folder / source.name
    shutil.copyfile(source, path)
    path.chmod(0o644)
    return path


def test_bom_fill_values_of_any_kind_are_not_observed(sample_data, tmp_path):
    path = changed_copy(sample_data / "bom_66_prcp-c10_20201031/66_20201031_040000.prcp-c10.nc", tmp_path)
    with h5py.File(path, "r+") as file:
        data = file["precipitation"]
        data[0, :5] = [-1, -2, -999, 32767, 0]
        data.attrs["missing_value"] = np.int16(32767)
    values = READERS["bom_rainfields"].read(path, Reading()).values
    np.testing.assert_array_equal(np.isnan(values[0, :5]), [True, True, True, True, False])


@pytest.fixture
def knmi(sample_data, tmp_path):
    """Writes a KNMI composite with other attributes; of its 765 x 700 cells the first four are set."""

    def write(cells=(), **attributes) -> Path:
        path = changed_copy(sample_data / "knmi_nl25_20100826/RAD_NL25_RAP_5min_201008260105.h5", tmp_path)
        with h5py.File(path, "r+") as file:
            for key, value in attributes.items():
                group = {"calibration": "image1/calibration", "projection": "geographic/map_projection"}
                file[group[key.split("_")[0]]].attrs[key] = value
            image = file["image1/image_data"][:]
            image[0, : len(cells)] = cells
            file["image1/image_data"][...] = image
        return path

    return write


def test_knmi_zero_as_missing_data_is_refused_or_settled(knmi):
    path = knmi([0, 0, 65535, 7], calibration_missing_data=np.array([0], np.int32))
    with pytest.raises(BadInput, match=r"source\.shared_code"):
        READERS["knmi_hdf5"].read(path, Reading())
    rate = READERS["knmi_hdf5"].read(path, DRY).values[0, :4]
    np.testing.assert_allclose(rate, [0, 0, np.nan, 0.84], atol=1e-5)
    rate = READERS["knmi_hdf5"].read(path, NO_DATA).values[0, :4]
    np.testing.assert_allclose(rate, [np.nan, np.nan, np.nan, 0.84], atol=1e-5)


PROJ = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a={a} +b={b} +x_0=0 {y}"


@pytest.mark.parametrize(
    "attributes",
    [
        {"projection_proj4_params": PROJ.format(a="6378137", b="6356752", y="+y_0=0")},
        {"projection_proj4_params": PROJ.format(a="6378137", b="6356752", y="y_0=0 +units=km")},
        {"projection_proj4_params": PROJ.format(a="6378.14", b="6356.75", y="y_0=0")},
        {"projection_proj4_params": PROJ.format(a="6378.137", b="6356.752", y="+y_0=0 +no_defs +units=km")},
        {"calibration_formulas": "GEO = 0.01 * PV + 0.0"},
        {"calibration_formulas": "geo=0.01*PV"},
        {"calibration_formulas": "GEO = 1e-2 * PV - 0.0"},
    ],
)
def test_knmi_headers_as_they_are_now(knmi, sample_data, attributes):
    from pipeline.grid_checks import grid_difference, grid_fault

    before = READERS["knmi_hdf5"].read(knmi(), Reading())
    now = READERS["knmi_hdf5"].read(knmi(**attributes), Reading())
    np.testing.assert_allclose(now.values, before.values, rtol=1e-5)
    assert grid_fault(now.grid) == "" and grid_difference(before.grid, now.grid) == ""


@pytest.mark.parametrize(
    "projection",
    [PROJ.format(a="6378137000", b="6356752000", y=""), PROJ.replace("stere", "nonsense"), "+proj=merc +a=6378137"],
)
def test_knmi_projections_that_do_not_fit_the_corners_are_refused(knmi, projection):
    with pytest.raises(BadInput, match=r"geo_product_corners|PROJ makes nothing|expected numbers"):
        READERS["knmi_hdf5"].read(knmi(projection_proj4_params=projection), Reading())


FILES = {
    "bom_rainfields": "bom_66_prcp-c10_20201031/66_20201031_040000.prcp-c10.nc",
    "knmi_hdf5": "knmi_nl25_20100826/RAD_NL25_RAP_5min_201008260105.h5",
    "odim_comp": "volumes/odim_h5/belgium.comp.hdf",
    "mch_gif": "mch_aqc_20160711/AQC161932045V_00005.801.gif",
    "fmi_pgm": "fmi_pgm_20160928/201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz",
    "mrms_grib2": "mrms_preciprate_20190610/PrecipRate_00.00_20190610-000000.grib2",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_a_fault_of_the_machine_is_not_that_of_the_file(name, code, sample_data, monkeypatch):
    fault = OSError(code, os.strerror(code))

    def fails(*args, **kwargs):
        raise fault

    def fails_in_hdf5(*args, **kwargs):
        raise OSError(f"Can't synchronously read data (file read failed: errno = {code}, error message = '{fault}')")

    hdf5 = name in ("bom_rainfields", "knmi_hdf5", "odim_comp")
    path = sample_data / FILES[name]
    if hdf5:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", fails_in_hdf5)
    elif name == "mch_gif":
        from PIL import Image

        monkeypatch.setattr(Image, "open", fails)
    else:
        monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        READERS[name].read(path, Reading())


@pytest.mark.parametrize("name", ["bom_rainfields", "knmi_hdf5", "odim_comp"])
def test_what_a_file_lacks_or_where_it_is_damaged_comes_first(name, sample_data, tmp_path):
    path = changed_copy(sample_data / FILES[name], tmp_path)
    field = {"bom_rainfields": "x", "knmi_hdf5": "overview", "odim_comp": "where"}[name]
    with h5py.File(path, "r+") as file:
        del file[field]
    with pytest.raises(BadInput, match=rf"{path.name}: (not what this reader expects: it lacks '{field}'|where lacks)"):
        READERS[name].read(path, Reading())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadInput, match=rf"{path.name}: not a whole HDF5 file of 2000 bytes: damaged, cut off"):
        READERS[name].read(path, Reading())

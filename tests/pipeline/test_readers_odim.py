"""ODIM composites as they are found: several fields in a file, fields that say they are wrong, corners of all kinds."""

from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyproj import Transformer

from pipeline.errors import BadInput, OtherQuantity
from pipeline.grid_checks import grid_difference, grid_fault
from pipeline.grids import Grid
from pipeline.sources.readers import READERS, Reading
from pipeline.sources.synthetic import write_composite

TIME = datetime(2024, 1, 1, 0, 10, tzinfo=UTC)
LAEA = "+proj=laea +lat_0=50 +lon_0=5 +units=m +type=crs"
GRID = Grid(LAEA, (40, 50), 1000.0, 90000.0, 2000.0, 2000.0)
read = READERS["odim_comp"].read


def composite(folder: Path, fields: "dict[str, str]", grid: Grid = GRID) -> Path:
    """A composite with the fields ``{"dataset1/data1": "DBZH"}``; each holds its number everywhere."""
    path = folder / "c_20240101T001000Z.h5"
    write_composite(path, np.zeros(grid.shape, np.float32), grid, TIME)
    with h5py.File(path, "r+") as file:
        span = dict(file["dataset1/what"].attrs)
        del file["dataset1"]
        for number, (place, quantity) in enumerate(fields.items(), 1):
            data = file.create_group(place)
            data["data"] = np.full(grid.shape, number, np.uint8)
            coding = {"quantity": quantity, "gain": 1.0, "offset": 0.0, "nodata": 255.0, "undetect": 0.0}
            data.create_group("what").attrs.update(coding)
            data.parent.require_group("what").attrs.update(span | {"startdate": "20240101", "starttime": "000500"})
    return path


def number_of(field) -> float:
    return float(np.unique(field.values).item())


@pytest.mark.parametrize(
    ("fields", "reading", "number", "parameter"),
    [
        ({"dataset1/data1": "TH", "dataset1/data2": "DBZH"}, Reading(), 2, "DBZH"),
        ({"dataset1/data1": "RATE", "dataset2/data1": "DBZH"}, Reading(), 2, "DBZH"),
        ({"dataset1/data1": "TH", "dataset2/data1": "QIND", "dataset2/data2": "RATE"}, Reading(), 3, "RATE"),
        ({"dataset1/data1": "TH"}, Reading(), 1, "TH"),
        ({"dataset10/data1": "DBZH", "dataset2/data1": "DBZH"}, Reading(), 2, "DBZH"),
        ({"dataset1/data1": "DBZH", "dataset2/data1": "RATE"}, Reading(quantity="RATE"), 2, "RATE"),
        ({"dataset1/data1": "DBZH", "dataset2/data1": "DBZH"}, Reading(dataset="dataset2"), 2, "DBZH"),
        ({"dataset1/data1": "TH", "dataset1/data2": "DBZH"}, Reading(dataset="dataset1/data1"), 1, "TH"),
    ],
)
def test_of_several_fields_the_one_is_read_that_is_meant(tmp_path, fields, reading, number, parameter):
    field = read(composite(tmp_path, fields), reading)
    assert (number_of(field), field.parameter) == (number, parameter)


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    path = composite(tmp_path, {"dataset1/data1": "DBZH", "dataset1/data2": "QIND"})
    with pytest.raises(OtherQuantity, match=r"expected RATE, found quantity DBZH, QIND"):
        read(path, Reading(quantity="RATE"))
    with pytest.raises(
        BadInput, match=r"expected one of DBZH, .* in dataset3 \(source\.dataset\), found quantity none"
    ):
        read(path, Reading(dataset="dataset3"))
    with pytest.raises(BadInput, match=r"expected one of DBZH, RATE, ACRR, TH, found quantity VRADH"):
        read(composite(tmp_path, {"dataset1/data1": "VRADH"}), Reading())


@pytest.mark.parametrize("flag", ["True", np.bytes_(b"true"), np.True_, np.array([1])])
@pytest.mark.parametrize("place", ["/", "dataset1", "dataset1/data1"])
def test_a_composite_that_says_it_is_malfunctioning_is_refused(tmp_path, place, flag):
    path = composite(tmp_path, {"dataset1/data1": "DBZH"})
    with h5py.File(path, "r+") as file:
        file[place].require_group("how").attrs["malfunc"] = flag
    with pytest.raises(BadInput, match="malfunctioning"):
        read(path, Reading())
    with h5py.File(path, "r+") as file:
        file[place]["how"].attrs["malfunc"] = "False"
    assert number_of(read(path, Reading())) == 1


def test_of_two_fields_the_one_that_works_is_read(tmp_path):
    path = composite(tmp_path, {"dataset1/data1": "DBZH", "dataset2/data1": "DBZH"})
    with h5py.File(path, "r+") as file:
        file["dataset1"].create_group("how").attrs["malfunc"] = "True"
    assert number_of(read(path, Reading())) == 2


def test_what_is_not_needed_cannot_fail(tmp_path):
    path = composite(tmp_path, {"dataset1/data1": "DBZH"})
    legend = np.array([(b"rain", 1)], dtype=[("key", "S8"), ("value", "i4")])
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/quality1/legend"] = legend
        file["dataset1/what"].attrs["legend"] = legend
        del file["dataset1/what"].attrs["starttime"]  # only sums need it
        file["dataset1/data9"] = h5py.SoftLink("/nowhere")
        file["dataset7"] = np.zeros(3)
    assert number_of(read(path, Reading())) == 1


def corners(path: Path, grid: Grid, half: float, **where) -> Path:
    """Write corners ``half`` a cell outward of the outermost centres, and what else of ``where``."""
    rows, columns = grid.shape
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    edges = {
        "LL": (grid.west - half * grid.dx, grid.north - (rows - 1 + half) * grid.dy),
        "UR": (grid.west + (columns - 1 + half) * grid.dx, grid.north + half * grid.dy),
    }
    with h5py.File(path, "r+") as file:
        attrs = file["where"].attrs
        for corner, place in edges.items():
            attrs[f"{corner}_lon"], attrs[f"{corner}_lat"] = (round(v, 6) for v in to_degrees.transform(*place))
        attrs.update(where)
    return path


@pytest.mark.parametrize("half", [0.5, 0.0], ids=["outer edges", "pixel centres"])
def test_corners_are_read_as_the_scale_of_the_header_says(tmp_path, half):
    path = corners(composite(tmp_path, {"dataset1/data1": "DBZH"}), GRID, half)
    grid = read(path, Reading()).grid
    assert grid_difference(GRID, grid) == "" and grid.dx == pytest.approx(2000.0, abs=0.01)


def test_a_scale_that_fits_nothing_leaves_the_corners_to_the_standard(tmp_path):
    path = corners(composite(tmp_path, {"dataset1/data1": "DBZH"}), GRID, 0.5, xscale=1234.0, yscale=1234.0)
    assert grid_difference(GRID, read(path, Reading()).grid) == ""


def test_a_map_in_kilometres_is_the_same_grid(tmp_path):
    path = composite(tmp_path, {"dataset1/data1": "DBZH"})
    corners(path, GRID, 0.5, projdef=LAEA.replace("units=m", "units=km"))
    grid = read(path, Reading()).grid
    assert grid.dx == pytest.approx(2.0) and grid.spacing_m == pytest.approx(2000.0)
    assert grid_difference(GRID, grid) == "" and grid_fault(grid) == ""


@pytest.mark.parametrize(
    ("projdef", "expected_dx"),
    [("EPSG:4326", 0.25), ("+proj=longlat +ellps=WGS84", 0.25), ("+proj=merc +lon_0=0 +ellps=WGS84", 27829.87)],
)
def test_a_composite_across_the_date_line(tmp_path, projdef, expected_dx):
    path = composite(tmp_path, {"dataset1/data1": "DBZH"})
    with h5py.File(path, "r+") as file:
        where = file["where"].attrs
        where.update({"projdef": projdef, "LL_lon": 169.5, "UR_lon": -178.0, "LL_lat": -20.0, "UR_lat": -10.0})
        del where["xscale"]
    grid = read(path, Reading()).grid
    assert grid.dx == pytest.approx(expected_dx, rel=1e-5) and grid_fault(grid) == ""
    lon, lat = grid.lon_lat()
    assert lon[0, 0] % 360 == pytest.approx(169.625) and lon[0, -1] % 360 == pytest.approx(181.875)
    assert -20 < lat.min() < lat.max() < -10


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"projdef": "+proj=nonsense"}, "PROJ makes nothing of where/projdef"),
        ({"UR_lat": 10.0}, "give cells of"),
        ({"UR_lat": np.nan}, "give cells of"),
        ({"LL_lon": None}, "where lacks LL_lon"),
    ],
)
def test_headers_that_give_no_grid(tmp_path, where, said):
    path = composite(tmp_path, {"dataset1/data1": "DBZH"})
    with h5py.File(path, "r+") as file:
        for key, value in where.items():
            if value is None:
                del file["where"].attrs[key]
            else:
                file["where"].attrs[key] = value
    with pytest.raises(BadInput, match=said):
        read(path, Reading())


def test_real_composites_of_opera(sample_data):
    path = sample_data / "opera_cirrus_20241126/T_PABV21_C_EUOC_20241126010000.hdf"
    field = read(path, Reading())
    assert field.parameter == "DBZH" and field.grid.dx == pytest.approx(1000.0, abs=1e-3)
    assert field.values.shape == (4400, 3800) and 0.3 < np.isnan(field.values).mean() < 0.7
    assert (field.values == -32).any() and np.nanmax(field.values) < 80
    assert grid_fault(field.grid) == ""

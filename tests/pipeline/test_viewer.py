"""The forecast page: cells where they belong, values as they are, text that stays text."""

import base64
import io
import json
import re
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from pyproj import Transformer

from pipeline import operations, packing, product
from pipeline.domain import ZR, Scale
from pipeline.errors import NotForecast, SettingsError, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE, rate_table
from pipeline.grids import Grid, centred_grid
from pipeline.storage import Store
from pipeline.viewer import coast, page
from pipeline.viewer.forecast import read_places, read_probabilities
from pipeline.viewer.images import png, seen
from pipeline.viewer.mercator import mercator_image
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, remove_frames

NORTH = centred_grid("EPSG:3067", (90, 70), 2000.0, (26.0, 64.0))
SOUTH = centred_grid("+proj=aea +lat_1=-18 +lat_2=-36 +lon_0=153 +units=m", (64, 80), 1000.0, (153.0, -27.7))
LATLON = Grid("EPSG:4326", (40, 60), -100.0, 45.0, 0.02, 0.02)
PACIFIC = centred_grid("+proj=laea +lat_0=-17 +lon_0=179 +units=m", (60, 60), 10000.0, (179.0, -17.0))
GRIDS = pytest.mark.parametrize("grid", [NORTH, SOUTH, LATLON, PACIFIC], ids=["north", "south", "latlon", "date line"])


def place_of(image, row, column):
    """Longitude and latitude of the centre of a cell of the image, by EPSG:3857 as PROJ has it."""
    rows, columns = image.source.shape
    to_metres = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    _, south = to_metres.transform(0, image.south)
    _, north = to_metres.transform(0, image.north)
    y = north - (north - south) * (row + 0.5) / rows
    _, latitude = to_metres.transform(0, y, direction="INVERSE")
    return image.west + (image.east - image.west) * (column + 0.5) / columns, latitude


@GRIDS
@pytest.mark.parametrize("cell", [(5, 8), (30, 30), (37, 55)])
def test_a_cell_lies_where_it_lies_on_the_earth(grid, cell):
    field = np.zeros(grid.shape, np.uint8)
    field[cell] = 200
    image = mercator_image(grid)
    rows, columns = np.nonzero(image.of(field, 255) == 200)
    assert len(rows), "the cell was thinned away"
    longitude, latitude = place_of(image, rows.mean(), columns.mean())
    x, y = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True).transform(longitude, latitude)
    if grid.is_geographic:
        x = grid.west + (x - grid.west) % 360
    assert abs(x - grid.x[cell[1]]) < grid.dx and abs(y - grid.y[cell[0]]) < grid.dy


@GRIDS
def test_north_is_up_and_west_is_left(grid):
    image = mercator_image(grid)
    rows, columns = image.source.shape
    row, column = np.divmod(image.source, grid.shape[1])
    assert image.east > image.west and image.north > image.south
    assert row[rows // 8, columns // 2] < row[-rows // 8, columns // 2]
    assert column[rows // 2, columns // 8] < column[rows // 2, -columns // 8]


def test_across_the_date_line_the_image_is_narrow():
    image = mercator_image(PACIFIC)
    assert 170 < image.west < 180 < image.east < 190


def test_the_extent_holds_the_outer_edges_of_the_cells():
    image = mercator_image(LATLON)
    assert (image.west, image.east) == (pytest.approx(-100.01), pytest.approx(-98.81))
    assert (image.north, image.south) == (pytest.approx(45.01), pytest.approx(44.21))
    assert (image.source >= 0).all()


def test_a_large_domain_is_thinned_to_the_longest_side():
    grid = Grid("EPSG:4326", (1000, 2000), -100.0, 45.0, 0.01, 0.01)
    image = mercator_image(grid)
    assert max(image.source.shape) == 640
    assert len(np.unique(image.source)) == image.source.size  # thinned, nothing twice


def test_a_domain_at_a_pole_is_refused():
    with pytest.raises(NotForecast, match="85 degrees"):
        mercator_image(centred_grid("EPSG:3413", (60, 60), 10000.0, (0.0, 89.0)))


def test_values_and_missing_cells_come_back_from_the_png():
    grid = centred_grid("+proj=laea +lat_0=51 +lon_0=5 +units=m", (32, 32), 2000.0, (5, 51))
    pixels = np.arange(1024).reshape(32, 32).astype(np.uint8)
    covered = np.ones((32, 32), bool)
    covered[:, 20:] = False
    image = mercator_image(grid)
    drawn = png(image, seen(pixels, covered))
    head, data = drawn["png"].split(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    values = np.asarray(picture)
    assert picture.mode == "L" and "gamma" not in picture.info and int(values.sum()) == drawn["sum"]
    expected = np.where(covered, np.minimum(pixels, 254), 255)
    assert np.array_equal(values[image.source >= 0], expected.ravel()[image.source[image.source >= 0]])
    assert (values[image.source < 0] == 255).all()


# two countries side by side: they share the arc 0; arc 1 is the west coast, arc 2 the east coast
TOPOLOGY = {
    "transform": {"scale": [0.5, 0.25], "translate": [10.0, 40.0]},
    "arcs": [[[4, 0], [0, 8]], [[4, 8], [-4, 0], [0, -8], [4, 0]], [[4, 0], [4, 0], [0, 8], [-4, 0]]],
    "objects": {
        "countries": {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "arcs": [[0, 1]]},
                {"type": "MultiPolygon", "arcs": [[[~0, 2]]]},
            ],
        }
    },
}


def test_arcs_are_decoded_and_shared_ones_are_borders():
    found = coast.lines_within(TOPOLOGY, (0, 60, 30, 60))
    assert [line.tolist() for line in found["border"]] == [[[12, 40], [12, 42]]]
    assert [line.tolist() for line in found["coast"]] == [
        [[12, 42], [10, 42], [10, 40], [12, 40]],
        [[12, 40], [14, 40], [14, 42], [12, 42]],
    ]


def test_lines_are_cut_at_the_window_and_left_out_beyond():
    found = coast.lines_within(TOPOLOGY, (9, 11, 39, 41))
    assert [line.tolist() for line in found["coast"]] == [[[10, 41], [10, 40], [11, 40]]]
    assert not found["border"]
    line = np.array([[0.0, 0], [4, 0], [4, 2], [0, 2]])
    assert [part.tolist() for part in coast.clip(line, (1, 3, -1, 3))] == [[[1, 0], [3, 0]], [[3, 2], [1, 2]]]


def test_the_seam_of_the_file_is_no_coast():
    island = {
        "transform": {"scale": [1, 1], "translate": [-180, -20]},
        "arcs": [[[358, 0], [2, 0], [0, 2], [-2, 0]], [[2, 0], [-2, 0], [0, 2], [2, 0]]],
        "objects": {"countries": {"geometries": [{"arcs": [[0]]}, {"arcs": [[1]]}]}},
    }
    lines = coast.lines_within(island, (170, 190, -30, 0))["coast"]
    assert sorted(line.tolist() for line in lines) == [
        [[178, -20], [180, -20]],
        [[180, -18], [178, -18]],
        [[180, -18], [182, -18]],
        [[182, -20], [180, -20]],
    ]


HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028\u2029&'\""


def test_text_of_the_data_cannot_end_a_script():
    made = page.script("nowcastData", {"name": HOSTILE}).decode("ascii")
    assert not set("<>&\u2028\u2029") & set(made) and made.count("\n") == 1
    assert read_script(made, "nowcastData") == {"name": HOSTILE}


def read_script(text, function):
    return json.loads(re.fullmatch(rf"{function}\((.*)\);\n", text)[1])


@pytest.fixture
def vendor(tmp_path, monkeypatch):
    """A stand-in for the map library, so that these tests need no npm."""
    here = tmp_path / "viewer"
    (here / "vendor").mkdir(parents=True)
    (here / "static").symlink_to(page.HERE / "static")
    for name in page.LIBRARY:
        (here / "vendor" / name).write_text(name)
    (here / "vendor" / coast.WORLD.name).write_text(json.dumps(TOPOLOGY))
    monkeypatch.setattr(page, "HERE", here)
    return here / "vendor"


@pytest.fixture
def settings(root):
    return settings_for(root, synthetic_domain(model="optical_flow"))


def view(settings, reference_time=None, out=None):
    return operations.view(settings, "small", reference_time, out)


def content_of(written):
    return read_script(written.data.read_text(), "nowcastData")


def test_the_page_shows_past_now_and_every_method(settings, vendor):
    backfill(settings, T0, T0 + STEP)
    remove_frames(settings, T0 - STEP)
    written = view(settings)
    folder = settings.root / "view" / "small"
    assert written.page == folder / "index.html"
    assert (written.reference_time, written.kind, written.method) == (
        "2024-06-01T02:10:00Z",
        "hindcast",
        "optical_flow",
    )
    assert written.data.name == "frames-20240601T021000Z-hindcast-r1.js"
    shown = content_of(written)
    assert [method["name"] for method in shown["methods"]] == ["optical_flow", "last_frame"]
    assert len(shown["methods"][0]["frames"]) == len(shown["lead_times"]) == 4
    assert shown["lead_times"][0] == "2024-06-01T02:20:00Z"
    # five input frames from 01:20 on, of which one was taken away; what is before was never taken in
    assert [frame["time"][11:16] for frame in shown["past"]] == ["01:20", "01:30", "01:40", "01:50", "02:00", "02:10"]
    assert [n for n, frame in enumerate(shown["past"]) if frame["frame"] is None] == [3]
    assert [time[11:16] for time in shown["gaps"]] == ["01:10", "01:50"]
    assert shown["fallback_reason"] == "" and shown["institution"].startswith("not stated")
    domain = settings.domain("small")
    assert shown["rates_mm_h"][200] == pytest.approx(float(rate_table(ZR(), Scale(), 0.1)[200]), rel=1e-3)
    pixels, state, _ = product.read_forecast(Store(settings.root).product("small", "hindcast", T0 + STEP, 1), domain)
    image = mercator_image(Archive(Store(settings.root), domain).source().grid)
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["methods"][0]["frames"][3]["png"].split(",")[1]))))
    expected = image.of(np.where(state[3] == NO_COVERAGE, 255, np.minimum(pixels[3], 254)).astype(np.uint8), 255)
    assert np.array_equal(values, expected) and 0 < (values > 0).mean() < 1


def test_a_time_before_the_newest_can_be_asked_for_and_elsewhere(settings, vendor, tmp_path):
    backfill(settings, T0, T0 + STEP)
    written = view(settings, T0, tmp_path / "web")
    assert written.data == tmp_path / "web" / "frames-20240601T020000Z-hindcast-r1.js"
    assert read_script((tmp_path / "web/latest.js").read_text(), "nowcastLatest") == {"file": written.data.name}


def test_frames_are_there_before_latest_names_them_and_old_ones_go(settings, vendor, monkeypatch):
    backfill(settings, T0, T0 + 4 * STEP)
    folder = settings.root / "view" / "small"
    folder.mkdir(parents=True)
    (folder / "frames-of-mine.js").write_text("kept: not a name of ours")
    written: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, new, path: (written.append(path.name), put(self, new, path))[1])
    for n in range(5):
        view(settings, T0 + n * STEP)
    assert written[-2:] == ["frames-20240601T024000Z-hindcast-r1.js", "latest.js"]
    assert written.count("index.html") == written.count("coast.js") == 1  # what is the same stays
    assert sorted(path.name for path in folder.glob("frames-*")) == [
        "frames-20240601T022000Z-hindcast-r1.js",
        "frames-20240601T023000Z-hindcast-r1.js",
        "frames-20240601T024000Z-hindcast-r1.js",
        "frames-of-mine.js",
    ]
    oldest = view(settings, T0)  # an old one that is asked for is not removed by its own command
    assert oldest.data.is_file() and oldest.data.name in (folder / "latest.js").read_text()


def test_errors_say_what_is_missing(settings, vendor):
    with pytest.raises(NotForecast, match="nowcast run small"):
        view(settings)
    backfill(settings)
    with pytest.raises(NotForecast, match="2024-06-01T02:10:00Z"):
        view(settings, T0 + STEP)
    path = Store(settings.root).product("small", "hindcast", T0, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreUnavailable, match="damaged"):
        view(settings)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="lost"):
        view(settings)
    (vendor / "leaflet.js").unlink()
    with pytest.raises(SettingsError, match="make viewer"):
        view(settings)


def test_a_damaged_companion_is_said_and_the_forecast_is_shown(settings, vendor):
    backfill(settings)
    path = Store(settings.root).product("small", "hindcast", T0, 1)
    Store(settings.root).baselines(path).write_bytes(b"cut off")
    path.with_suffix(".places.json").write_text('{"places": [{"name": "no kind"}]}')
    shown = content_of(view(settings))
    assert [method["name"] for method in shown["methods"]] == ["optical_flow"]
    assert len(shown["notes"]) == 2 and "places" in shown["notes"][1] and shown["places"] == []


def test_points_and_areas_are_read(tmp_path):
    square = [[[4.0, 51.0], [5.0, 51.0], [5.0, 52.0], [4.0, 51.0]]]
    point = {"name": HOSTILE, "kind": "point", "longitude": 5, "latitude": 51.5, "threshold": 3}
    file = tmp_path / "p.places.json"
    file.write_text(json.dumps({"places": [point, {"name": "basin", "kind": "area", "rings": square}]}))
    assert read_places(file) == [
        {"name": HOSTILE, "kind": "point", "longitude": 5.0, "latitude": 51.5},
        {"name": "basin", "kind": "area", "rings": square},
    ]


def test_probabilities_are_percent_and_missing_ones_stay_missing():
    fraction = np.array([0.0, 0.004, 0.104, 0.5, 1.0, np.nan]).reshape(1, 1, 2, 3)
    variable = packing.packed(("threshold", "time", "y", "x"), np.repeat(fraction, 2, axis=0), 0.001, {})
    thresholds = xr.Variable(("threshold",), np.array([0.5, 5], np.float32), {"units": "mm h-1"})
    found = read_probabilities(xr.Dataset({"probability_of_exceedance": variable, "threshold": thresholds}))
    assert list(found) == [0.5, 5.0]
    assert found[5.0].dtype == np.uint8 and found[5.0].tolist() == [[[0, 0, 10], [50, 100, 255]]]
    assert read_probabilities(xr.Dataset()) == {}
    percent = xr.Variable(("threshold", "time", "y", "x"), 100 * np.nan_to_num(fraction))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        read_probabilities(xr.Dataset({"probability_of_exceedance": percent, "threshold": thresholds[:1]}))


def test_the_issued_forecast_goes_before_the_hindcast_of_its_time(settings, vendor):
    operations.run(settings, "small", T0, T0 + timedelta(minutes=2))
    backfill(settings)
    assert view(settings).kind == "issued"
    backfill(settings, T0 + STEP, T0 + STEP)
    assert view(settings).kind == "hindcast"  # but the newer goes before both

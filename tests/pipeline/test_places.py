"""Places: settings, cells, values, and the files beside a product."""

import csv
import json
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import operations
from pipeline.errors import SettingsError
from pipeline.grids import Grid, centred_grid
from pipeline.place_settings import check_name, read_areas
from pipeline.settings import flat, load
from pipeline.warnings.forecasts import spell
from pipeline.warnings.places import cells_inside, maxima, places_of, values
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, write_model

GRID = centred_grid("+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs", (64, 64), 2000.0, (5.0, 51.0))
DOMAIN = """
[domains.here]
cadence_minutes = 10
grid = { crs = "EPSG:3035", shape = [64, 64], spacing_m = 2000, centre = [5, 51] }
source = { kind = "synthetic" }
points = { home = [5.0, 51.0], "north gate" = [5.1, 51.3] }
"""


def box(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def feature(name, *rings, kind="Polygon"):
    coordinates = list(rings) if kind == "Polygon" else [[ring] for ring in rings]
    return {"type": "Feature", "properties": {"name": name}, "geometry": {"type": kind, "coordinates": coordinates}}


def write_areas(folder, *features) -> str:
    path = folder / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return str(path)


def test_the_cell_of_a_point_is_the_one_that_contains_it():
    lon, lat = GRID.lon_lat()
    points = {f"p{row}": (float(lon[row, 7]), float(lat[row, 7])) for row in (0, 20, 63)}
    places = places_of(synthetic_domain(points=points), GRID)
    assert [(place.rows.tolist(), place.columns.tolist()) for place in places] == [([r], [7]) for r in (0, 20, 63)]
    latlon = Grid("EPSG:4326", (40, 60), 259.0, 45.0, 0.02, 0.02)  # 0 to 360 degrees
    (place,) = places_of(synthetic_domain(grid={"native": True}, source={"kind": "gridded", "reader": "mrms_grib2",
                         "uri": "x"}, points={"p": (-100.905, 44.90)}), latlon)  # fmt: skip
    assert (place.rows[0], place.columns[0]) == (5, 5)


def test_cells_of_a_square_with_a_hole_and_of_two_parts():
    square, hole = (np.array(box(a, a, b, b)) for a, b in ((1.5, 6.5), (2.5, 4.5)))
    rows, columns, size = cells_inside([square, hole], (10, 10))
    inside = np.zeros((10, 10), int)
    inside[rows, columns] += 1
    assert size == inside.sum() == 25 - 4 and inside[2, 2] == 1 and inside[3, 3] == 0 and inside.max() == 1
    apart = [np.array(box(0.5, 0.5, 2.5, 2.5)), np.array(box(6.5, 0.5, 8.5, 2.5))]
    assert cells_inside(apart, (10, 10))[2] == 8


def test_cells_of_any_ring_are_those_of_the_even_odd_rule():
    rng = np.random.default_rng(3)
    for _ in range(20):
        ring = rng.uniform(-6, 26, (9, 2))
        ring = np.concatenate((ring, ring[:1]))
        rows, columns, size = cells_inside([ring], (20, 24))
        found = np.zeros((20, 24), bool)
        found[rows, columns] = True
        for row, column in np.ndindex(found.shape):
            left = 0
            for (x0, y0), (x1, y1) in pairwise(ring):
                if (y0 <= row) != (y1 <= row):
                    left += x0 + (row - y0) * (x1 - x0) / (y1 - y0) <= column
            assert found[row, column] == left % 2
        assert size >= found.sum()


def test_a_small_area_is_the_cell_of_its_centroid_and_one_half_outside_is_refused(tmp_path):
    lon, lat = GRID.lon_lat()
    x, y = float(lon[10, 20]) + 0.009, float(lat[10, 20]) + 0.002
    areas = write_areas(tmp_path, feature("yard", box(x, y, x + 0.001, y + 0.001)))
    (yard,) = places_of(synthetic_domain(areas=areas), GRID)
    assert (yard.rows.tolist(), yard.columns.tolist(), yard.size) == ([10], [20], 1)
    edge = float(lon[32, 63])
    for beyond, fits in ((0.1, True), (0.9, False)):
        areas = write_areas(tmp_path, feature("coast", box(edge - 0.4, 50.9, edge + beyond, 51.1)))
        if fits:
            (coast,) = places_of(synthetic_domain(areas=areas), GRID)
            assert len(coast.rows) < coast.size
        else:
            with pytest.raises(SettingsError, match=r"coast has .* cells on the grid"):
                places_of(synthetic_domain(areas=areas), GRID)
    areas = write_areas(tmp_path, feature("moon", box(100, 0, 101, 1)))
    with pytest.raises(SettingsError, match="moon"):
        places_of(synthetic_domain(areas=areas), GRID)


def test_values_are_means_of_what_is_observed_if_that_is_half():
    (place,) = places_of(synthetic_domain(points={"p": (5.0, 51.0)}), GRID)
    area = type(place)("a", "area", np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 4)
    field = np.zeros((3, 64, 64))
    field[:, :2, :2] = [[1, 2], [3, 6]]
    field[1, 0, :2] = np.nan
    field[2, 1, :2] = field[2, 0, 0] = np.nan
    assert values(area, field)[:2].tolist() == [3, 4.5] and maxima(area, field)[:2].tolist() == [6, 6]
    assert np.isnan(values(area, field)[2]) and np.isnan(maxima(area, field)[2])


NAN = float("nan")


@pytest.mark.parametrize(
    ("rates", "onset", "end"),
    [
        ([0, 0, 0, 0], 0, 0),
        ([0, 0, 1, 1, 0], 2, 4),
        ([0, 1, 0, 0, 0], 1, 0),
        ([0, 1, 0, 1, 1, 0], 1, 5),
        ([1, 0, 0, 1], 0, 1),
        ([1, 1, 1], 0, 0),
        ([NAN, 1, 1, 0], 0, 3),
        ([0, 1, 1, NAN, 0], 1, 0),
        ([0, 0.09, 0.1, 0.1, 0.09], 2, 4),
    ],
)
def test_onset_and_end_of_rain(rates, onset, end):
    assert spell(rates) == (onset, end)


@pytest.fixture
def config(tmp_path):
    def write(text: str):
        path = tmp_path / "nowcast.toml"
        path.write_text(text)
        return path

    return write


def test_settings_read_places_and_warnings_and_hide_the_webhook(config, tmp_path):
    write_areas(tmp_path, feature("Maas basin", box(4.9, 50.9, 5.1, 51.1)))
    text = DOMAIN + (
        'areas = "areas.geojson"\n'
        'warnings = [{ place = "home", amount_mm = 10, minutes = 60, webhook = "${RAIN_HOOK}" },'
        ' { place = "Maas basin", amount_mm = 20, minutes = 120, clear_mm = 15 }]\n'
    )
    settings = load(config(text), None, {"RAIN_HOOK": "https://hooks.example/services/hush"})
    domain = settings.domain("here")
    assert domain.points["north gate"] == (5.1, 51.3) and list(domain.rings_of_areas) == ["Maas basin"]
    assert [rule.clear_mm for rule in domain.warnings] == [7, 15]
    assert domain.warnings[0].webhook.get_secret_value() == "https://hooks.example/services/hush"
    for shown in (repr(settings), str(flat(settings)), settings.model_dump_json(), json.dumps(settings.origins)):
        assert "hush" not in shown


RULE = 'warnings = [{ place = "home", amount_mm = 10, minutes = 60, %s }]\n'


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('warnings = [{ place = "hom", amount_mm = 10, minutes = 60 }]\n', ["'hom'", "home, north gate"]),
        (RULE % "clear_mm = 10", ["clear_mm", "less than amount_mm = 10"]),
        (RULE.replace("60", "45") % "clear_mm = 1", ["minutes", "30, 60 or 120"]),
        (RULE.replace("60", "120") % "clear_mm = 1" + "lead_frames = 6\n", ["120 minutes", "1:00:00"]),
        (RULE % 'webhook = "https://hooks.example/hush"', ["warnings.0.webhook", "environment"]),
        (RULE % 'webhook = "${NONE}"', ["NONE is not set"]),
        (RULE % 'webhook = "${FILE}"', ["webhook", "http(s)"]),
        (RULE % 'webhook = "${USER}"', ["webhook", "http(s)"]),
        (RULE % 'webhook = "${HOOK}", colour = 1', ["colour", "unknown key"]),
        (RULE.replace("10,", "-1,") % 'webhook = "${HOOK}"', ["amount_mm", "-1"]),
        ('areas = "no.geojson"\n', ["no.geojson", "cannot be read"]),
        ('areas = "areas.geojson"\n', ["'home' is the name of a point too"]),
    ],
)
def test_errors_of_places_and_warnings_name_what_is_wrong(config, tmp_path, more, said):
    write_areas(tmp_path, feature("home", box(4.9, 50.9, 5.1, 51.1)))
    environment = {
        "HOOK": "https://hooks.example/hush",
        "FILE": "file:///hush",
        "USER": "https://me:hush@hooks.example/",
    }
    with pytest.raises(SettingsError) as err:
        load(config(DOMAIN + more), None, environment)
    assert "hush" not in str(err.value)
    for words in said:
        assert words in str(err.value)


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("[5.0, 95.0]", "less than or equal to 90"),
        ("[nan, 51.0]", "finite"),
        ("[12.0, 51.0]", "points.home: [12.0, 51.0] lies outside the grid"),
    ],
)
def test_a_point_that_is_nowhere_or_outside_the_grid_is_refused(config, point, said):
    with pytest.raises(SettingsError) as err:
        load(config(DOMAIN.replace("[5.0, 51.0]", point)), None, {})
    assert said in str(err.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "nested"),
        (b"[]", "FeatureCollection"),
        (b'{"type": "FeatureCollection", "features": [{}]}', "feature 0 has no property 'name'"),
        (json.dumps({"type": "FeatureCollection", "features": [feature("a", box(0, 0, 1, 1)[:4])]}).encode(), "a ring"),
        (json.dumps({"type": "FeatureCollection", "features": [feature("../a", box(0, 0, 1, 1))]}).encode(), "'../a'"),
        (json.dumps({"type": "FeatureCollection", "features": [feature("a", box(0, 0, 1, 99))]}).encode(), "99"),
        (json.dumps({"type": "FeatureCollection", "features": [feature("a", box(0, 0, 1, 1))] * 2}).encode(), "two"),
        (json.dumps({"type": "FeatureCollection", "features": [0] * 1001}).encode(), "1001 features"),
        (b" " * 5_000_001, "5000001 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_areas_is_refused_with_its_name(tmp_path, content, said):
    path = tmp_path / "areas.geojson"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"areas\.geojson") as err:
        read_areas(path)
    assert said in str(err.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON, JSON)
def test_whatever_the_areas_hold_only_a_message_comes_of_it(tmp_path_factory, name, coordinates):
    folder = tmp_path_factory.getbasetemp()
    geometry = {"type": "MultiPolygon", "coordinates": coordinates}
    path = write_areas(folder, {"properties": {"name": name}, "geometry": geometry})
    try:
        assert read_areas(folder / path).keys() == {name}
    except ValueError as err:
        assert "areas.geojson" in str(err)


@given(st.text(max_size=70))
def test_names_of_places_are_safe_in_files_and_pages(name):
    try:
        check_name(name)
    except ValueError as err:
        assert len(str(err)) < 300 and str(err).isprintable()
    else:
        assert not set(name) & set('<>&"=,;/\\\n\r\t\0\u202e') and name[0].isalnum() and len(name) <= 60


def test_the_files_beside_a_product_say_what_the_product_says(root, tmp_path):
    import xarray as xr

    areas = write_areas(tmp_path, feature("basin", box(4.6, 50.8, 5.4, 51.2), box(4.9, 50.9, 5.1, 51.1)))
    model = write_model(tmp_path / "tiny", "convlstm_classes", {"widths": [6], "patch": 2})
    domain = synthetic_domain(model=model, points={"home": (5.0, 51.0)}, areas=areas, thresholds_mm_h=[0.5, 5.0])
    settings = settings_for(root, domain)
    report = operations.run(settings, "small", T0, T0 + timedelta(minutes=1))
    path = root / report.products[0]
    text = path.with_name(path.stem + ".places.json").read_text()
    document = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert (document["kind"], document["method"], document["reference_time"]) == (
        "issued", "tiny", "2024-06-01T02:00:00Z")  # fmt: skip
    assert document["valid_times"] == [f"2024-06-01T02:{n}0:00Z" for n in range(1, 5)]
    home, basin = document["places"]
    with xr.open_dataset(path, engine="h5netcdf") as data:
        point = data.sel(x=0, y=0, method="nearest")
        assert home["rate_mm_h"] == pytest.approx(point.rainfall_rate.values, abs=0.006)
        assert home["amount_mm"]["30"] == pytest.approx(float(point.rainfall_amount[0]), abs=0.006)
        assert home["probability"]["0.5"] == pytest.approx(point.probability_of_exceedance[0].values, abs=0.001)
        inside = (abs(data.lon - 5) < 0.4) & (abs(data.lat - 51) < 0.2)
        hole = (abs(data.lon - 5) < 0.1) & (abs(data.lat - 51) < 0.1)
        mean = data.rainfall_rate.where(inside & ~hole).mean(("y", "x")).values
    assert basin["rate_mm_h"] == pytest.approx(mean, rel=0.1, abs=0.02)
    assert basin["maximum_mm_h"][0] >= basin["rate_mm_h"][0] and 0 <= basin["wet_share"][0] <= 1
    assert len(basin["rings"]) == 2 and basin["rings"][0][0] == basin["rings"][0][-1]
    with path.with_name(path.stem + ".places.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["place"] for row in rows] == ["home"] * 4 + ["basin"] * 4
    assert float(rows[5]["rate_mm_h"]) == basin["rate_mm_h"][1] and rows[0]["wet_share"] == ""
    assert float(rows[2]["amount_mm"]) == home["amount_mm"]["30"] and rows[3]["amount_mm"] == ""
    assert operations.run(settings, "small", T0, T0 + STEP).cycles == {"unchanged": 1}


def test_a_place_without_coverage_is_null_and_a_domain_without_places_writes_nothing_more(root):
    from pipeline.frames.archive import Archive
    from pipeline.frames.grayscale import NO_COVERAGE
    from pipeline.storage import Store

    settings = settings_for(root, synthetic_domain(model="optical_flow", points={"home": (5.0, 51.0)}))
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, T0)
    archive = Archive(Store(root), settings.domain("small"))
    for n in range(5):
        frame = archive.read(T0 - n * STEP)
        frame.state[30:34, 30:34], frame.pixels[:, 30:34, 30:34] = NO_COVERAGE, 0
        archive.write(T0 - n * STEP, frame, archive.source())
    report = operations.run(settings, "small", T0, T0)
    path = root / report.products[0]
    (home,) = json.loads(path.with_name(path.stem + ".places.json").read_text())["places"]
    assert home["rate_mm_h_now"] is None and home["rate_mm_h"] == [None] * 4 and home["amount_mm"] == {"30": None}
    assert home["onset"] is None and home["end"] is None
    other = settings_for(root / "other", synthetic_domain(model="optical_flow"))
    report = operations.run(other, "small", T0, T0)
    names = {p.name for p in (root / "other" / report.products[0]).parent.iterdir()}
    assert not any("places" in name for name in names)

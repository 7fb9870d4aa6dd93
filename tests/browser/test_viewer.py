"""The forecast page in a real browser: from disk and from a web server, desktop and phone."""

import functools
import json
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr

from pipeline import operations, packing, product
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE, rate_table
from pipeline.storage import Store
from pipeline.viewer import page as viewer_page
from tests.browser.conftest import DESKTOP, PHONE, served
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, remove_frames

pytestmark = pytest.mark.skipif(
    not (viewer_page.HERE / "vendor" / ".installed").is_file(),
    reason="the map library is not installed: `make viewer` (Debian: apt-get install npm)",
)

ON_ITS_SIDE = {"width": 844, "height": 390}
HOSTILE = '<img src=x onerror="window.hostile=1"></script><script>window.hostile=1</script>'
SHOWN = "document.querySelector('canvas.rain')?.dataset.shown"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two forecasts of a domain: the first has probabilities, places and hostile texts."""
    settings = settings_for(
        tmp_path_factory.mktemp("view") / "root",
        synthetic_domain(model="optical_flow", institution=HOSTILE, license="CC BY 4.0", max_gap=0),
    )
    backfill(settings, T0, T0)
    add_probabilities(Store(settings.root).product("small", "hindcast", T0, 1))
    places = [
        {
            "name": HOSTILE,
            "kind": "point",
            "longitude": 5.0,
            "latitude": 51.0,
            "amount_mm": {"30": 1.24, "60": None},
            "onset": "2024-06-01T02:20:00Z",
            "end": None,
        },
        {"name": "basin", "kind": "area", "rings": [[[4.6, 50.8], [5.2, 50.8], [5.0, 51.2], [4.6, 50.8]]]},
    ]
    path = Store(settings.root).product("small", "hindcast", T0, 1).with_suffix(".places.json")
    path.write_text(json.dumps({"places": places}))
    remove_frames(settings, T0 - STEP)
    return settings


def add_probabilities(path):
    """The product anew, with the probability of exceedance that its own rain would have."""
    data = packing.read_packed(path)
    rain = data["rainfall_rate"].values * product.RATE_STEP_MM_H
    thresholds = np.array([0.5, 5.0], np.float32)
    fraction = np.stack([np.clip(rain / (4 * threshold), 0, 1) for threshold in thresholds])
    dims = ("threshold", *data["rainfall_rate"].dims)
    data["probability_of_exceedance"] = packing.packed(dims, fraction, 0.001, {"units": "1"})
    data["threshold"] = xr.Variable(("threshold",), thresholds, {"units": "mm h-1"})
    data.attrs["verified_optical_flow"] = "CSI 0.52 at 30 min"
    del data.attrs["content_digest"]
    packing.write(data, path)


@pytest.fixture
def folder(root, tmp_path):
    operations.view(root, "small", T0, tmp_path / "page")
    return tmp_path / "page"


@pytest.fixture(params=["disk", "server"])
def address(request, folder):
    if request.param == "disk":
        yield folder.as_uri() + "/index.html"
        return
    with served(folder) as server:
        yield f"{server}/index.html"


@pytest.fixture
def visit(visit):
    """A page that has drawn its first picture."""
    return functools.partial(visit, ready=SHOWN)


def shown(page):
    """What the canvas shows, when it has caught up: layer and valid time."""
    page.wait_for_function(
        "(() => { const [d, t] = [document.querySelector('canvas.rain').dataset.shown,"
        " document.getElementById('valid').textContent];"
        " return d && d.includes(t.slice(0, 10)) && d.includes(t.slice(11, 16))"
        " && d.startsWith(document.getElementById('layer').value); })()"
    )
    return page.evaluate(SHOWN)


def picture(page):
    shown(page)
    return page.evaluate("document.querySelector('canvas.rain').toDataURL()")


def test_time_is_stepped_by_slider_buttons_and_keys(address, visit):
    page = visit(address)
    slider = page.get_by_role("slider", name="Valid time")
    assert shown(page) == "rate optical_flow 2024-06-01T02:00:00.000Z"
    assert page.locator("#offset").inner_text() == "now, observed"
    page.keyboard.press("ArrowRight")
    assert page.locator("#valid").inner_text() == "2024-06-01 02:10 UTC"
    assert page.locator("#offset").inner_text() == "+10 min, forecast"
    page.keyboard.press("End")
    assert "02:40" in shown(page) and slider.get_attribute("aria-valuetext") == "02:40 UTC, +40 min, forecast"
    page.keyboard.press("Home")
    assert page.locator("#offset").inner_text() == "\N{MINUS SIGN}40 min, observed"
    slider.focus()
    page.keyboard.press("ArrowRight")  # one step, although the slider has arrow keys of its own
    assert "01:30" in shown(page)
    slider.fill("3")
    assert page.locator("#offset").inner_text() == "\N{MINUS SIGN}10 min, no radar frame"
    assert page.evaluate(
        "document.querySelector('canvas.rain').getContext('2d').getImageData(0, 0, 64, 64).data.every((v) => v === 0)"
    )
    page.get_by_role("button", name="Now", exact=True).click()
    assert "02:00" in shown(page)
    status = page.get_by_role("status").inner_text()
    assert "Hindcast" in status and "no radar frame at 01:00 to 01:10, 01:50 UTC" in status


def test_the_loop_plays_unless_less_motion_is_wished(address, visit):
    still = visit(address)
    assert still.get_by_role("button", name="Play").is_visible()
    page = visit(address, motion="no-preference")
    assert page.get_by_role("button", name="Pause").is_visible()
    page.wait_for_function("document.getElementById('offset').textContent.startsWith('+')")
    page.keyboard.press(" ")
    assert page.get_by_role("button", name="Play").is_visible()


def wet_cell(settings):
    """A cell with rain around it at the last lead, so that a neighbour is no mistake: index, longitude, latitude."""
    domain = settings.domain("small")
    pixels, state, _ = product.read_forecast(Store(settings.root).product("small", "hindcast", T0, 1), domain)
    inner = pixels[3, 8:-8, 8:-8].astype(int)
    row, column = (int(n) + 8 for n in np.unravel_index(inner.argmax(), inner.shape))
    assert state[3, row, column] != NO_COVERAGE
    longitude, latitude = Archive(Store(settings.root), domain).source().grid.lon_lat()
    return (row, column), float(longitude[row, column]), float(latitude[row, column]), pixels


def click_at(page, longitude, latitude):
    """Click on a place of the map, found from the rain image's corners on the screen."""
    box = page.locator("canvas.rain").bounding_box()
    [[south, west], [north, east]] = page.evaluate("window.seenBounds")
    up = lambda degrees: np.arcsinh(np.tan(np.radians(degrees)))  # noqa: E731
    x = box["x"] + box["width"] * (longitude - west) / (east - west)
    y = box["y"] + box["height"] * (up(north) - up(latitude)) / (up(north) - up(south))
    page.mouse.click(x, y)


def keep_bounds(page, folder):
    """The bounds that the data name, for the test to click by."""
    text = next(folder.glob("frames-*.js")).read_text()
    content = json.loads(text[len("nowcastData(") : -3])
    page.evaluate("(bounds) => { window.seenBounds = bounds; }", content["bounds"])


def test_a_click_on_a_place_says_what_comes_there_and_its_name_stands_on_the_map(address, visit, folder):
    page = visit(address)
    keep_bounds(page, folder)
    assert page.locator(".leaflet-tooltip.place").inner_text() == HOSTILE
    click_at(page, 5.0, 51.0)
    page.locator(".series svg[role=img]").wait_for()
    assert page.locator("#panel-title").inner_text() == HOSTILE
    assert page.locator("#panel-body p").all_inner_texts()[:2] == ["1.2 mm in 30 min", "Rain begins at 02:20 UTC."]


def test_a_click_shows_the_values_of_the_product(address, visit, folder, root):
    page = visit(address)
    keep_bounds(page, folder)
    (row, column), longitude, latitude, pixels = wet_cell(root)
    click_at(page, longitude, latitude)
    page.locator(".series svg[role=img]").wait_for()
    page.get_by_text("Values as a table").click()
    head = page.locator("thead th").all_inner_texts()
    assert head[:4] == ["UTC", "observed, mm/h", "optical flow, mm/h", "last frame, mm/h"]
    cells = {line[0][:5]: line[1:] for line in (tr.inner_text().split("\t") for tr in page.locator("tbody tr").all())}
    rates = rate_table(root.domain("small").zr, root.domain("small").scale, 0.1)
    around = pixels[3, row - 1 : row + 2, column - 1 : column + 2]
    expected = {f"{rate:.1f}" if rate < 10 else f"{rate:.0f}" for rate in rates[np.minimum(around, 254)].ravel()}
    assert cells["02:40"][1] in expected and float(cells["02:40"][1]) > 0
    assert cells["01:50"][0] == "no frame" and cells["02:00"][1] == ""
    north, east = page.locator("#panel-title").inner_text().replace("\N{DEGREE SIGN} N", "").split(", ")
    assert float(north) == pytest.approx(latitude, abs=0.03) and float(
        east.split("\N{DEGREE SIGN}")[0]
    ) == pytest.approx(longitude, abs=0.03)
    page.keyboard.press("Escape")
    assert not page.locator("#panel").is_visible()
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + 150, box["y"] + box["height"] / 2)  # west of the domain
    page.get_by_text("No coverage: no radar of this domain sees this place.").wait_for()


def test_methods_and_probabilities_are_switched(address, visit):
    page = visit(address)
    page.keyboard.press("End")
    flow = picture(page)
    page.get_by_label("Show").select_option(label="last frame")
    frame = picture(page)
    assert frame != flow
    page.keyboard.press("m")
    assert picture(page) == flow
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert shown(page).startswith("probability 5 ")
    assert "Probability of rain \u2265 5 mm/h, %" in page.locator("#legend").inner_text()
    assert picture(page) not in (flow, frame)
    page.keyboard.press("n")  # what was observed has no probability
    assert "Rain rate, mm/h" in page.locator("#legend").inner_text()


def test_hostile_text_is_only_text(address, visit):
    page = visit(address)
    assert HOSTILE in page.locator("#credits").inner_text()
    box = page.locator("canvas.rain").bounding_box()
    for shift in (-3, 0):  # a hand does not arrive in one move
        page.mouse.move(box["x"] + box["width"] / 2 + shift, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
    assert HOSTILE in page.locator(".leaflet-tooltip").inner_text()
    page.locator("#about").click()
    assert HOSTILE in page.locator("#panel-body").inner_text()
    assert "CSI 0.52 at 30 min" in page.locator("#panel-body").inner_text()
    assert page.evaluate("window.hostile") is None


def seen_from_the_middle(page):
    """Where the rain image lies from the middle of the map, and its width: what is seen, whatever room the map has."""
    rain, map_ = (page.locator(part).bounding_box() for part in ("canvas.rain", "#map"))
    middle = [map_["x"] + map_["width"] / 2, map_["y"] + map_["height"] / 2]
    return [rain["x"] - middle[0], rain["y"] - middle[1], rain["width"]]


def test_a_newer_forecast_comes_in_without_a_reload(address, visit, folder, root):
    page = visit(address + "?poll=0.3")
    page.evaluate("window.mark = 'the same page'")
    page.get_by_label("Show").select_option(label="last frame")
    page.keyboard.press("ArrowRight")
    assert shown(page) == "rate last_frame 2024-06-01T02:10:00.000Z"
    page.keyboard.press("+")
    page.keyboard.press("c")
    page.get_by_text("Values as a table").click()
    page.get_by_role("button", name="Play").focus()
    page.wait_for_timeout(100)
    before = seen_from_the_middle(page)
    operations.backfill(root, "small", T0 + STEP, T0 + STEP, T0 + timedelta(days=1))
    operations.view(root, "small", None, folder)
    page.wait_for_function("document.getElementById('made').textContent.includes('02:10')")
    # method, time and view stay; the time that was forecast is now observed
    assert shown(page) == "rate last_frame 2024-06-01T02:10:00.000Z"
    assert page.locator("#offset").inner_text() == "now, observed"
    assert seen_from_the_middle(page) == pytest.approx(before, abs=1)
    assert page.evaluate("window.mark") == "the same page"
    page.wait_for_function("document.querySelector('tbody tr.now th').textContent.startsWith('02:10')")
    page.get_by_text("02:50").last.wait_for()
    assert page.evaluate("document.activeElement.id") == "play"


def test_a_late_forecast_says_how_old_it_is(folder, address, visit):
    file = next(folder.glob("frames-*.js"))
    file.write_text(file.read_text().replace('"kind":"hindcast"', '"kind":"issued"'))
    page = visit(address)
    assert "days old" in page.get_by_role("status").inner_text()
    assert "Hindcast" not in page.get_by_role("status").inner_text()


@pytest.mark.parametrize("size", [DESKTOP, PHONE, ON_ITS_SIDE], ids=["desktop", "phone", "phone on its side"])
def test_everything_has_its_place_on_the_screen(visit, folder, size):
    page = visit(folder.as_uri() + "/index.html", size)
    wide, high = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert (wide, high) == (size["width"], size["height"])
    for panel in (False, True):
        if panel:
            page.keyboard.press("c")
            page.wait_for_selector(".series svg[role=img]")
        parts = ["header", "#status", "#map", "#controls", "#credits"] + ["#panel"] * panel
        boxes = {part: page.locator(part).bounding_box() for part in parts}
        for one in parts:
            box = boxes[one]
            assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"] + 0.5, one
            assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"] + 0.5, one
            for other in parts[parts.index(one) + 1 :]:
                assert not overlap(box, boxes[other]), (one, other)
        assert boxes["#map"]["height"] > (0.2 if panel else 0.45) * size["height"]
    # thumbs need 44 pixels
    for control in page.locator("#controls button, #controls select, header button, #panel-close").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 44, control.inner_text()


def overlap(a, b):
    wide = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    high = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return wide > 0.5 and high > 0.5

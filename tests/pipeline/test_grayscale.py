from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import times
from pipeline.domain import ZR, Scale
from pipeline.frames.correlation import correlation
from pipeline.frames.gaps import fill_gaps
from pipeline.frames.grayscale import (
    ADVECTED,
    ECHO,
    NO_COVERAGE,
    NO_ECHO,
    REMOVED,
    Frame,
    join_channels,
    make_frame,
    pixel_of_rate,
    pixel_of_reflectivity,
    rate_of_reflectivity,
    rate_table,
    reflectivity_of_pixel,
    reflectivity_of_rate,
)
from pipeline.grids import Grid, centred_grid
from pipeline.sources import RainField
from tests.conftest import brisbane_domain, synthetic_domain

GRID = Grid("EPSG:3035", (4, 4), 0.0, 0.0, 1000.0, 1000.0)
TIME = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zr", "pixels"),
    [  # radar.md section 5, computed there independently
        (ZR(a=200, b=1.6), [103, 138, 161, 179, 206]),
        (ZR(a=300, b=1.4), [111, 142, 162, 178, 202]),
        (ZR(a=58.53, b=1.56), [84, 118, 141, 158, 185]),
        (ZR(a=250, b=1.2), [111, 137, 154, 167, 188]),
    ],
)
def test_pixels_of_the_five_thresholds(zr, pixels):
    assert [pixel_of_rate(r, zr, Scale()) for r in (0.5, 2, 5, 10, 30)] == pixels


def test_pixel_to_reflectivity_and_back_is_exact():
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pixel_of_reflectivity(reflectivity_of_pixel(pixels, Scale()), Scale()), pixels)


def test_rate_and_reflectivity_round_trip_dry_and_nan():
    rate = np.array([0.0, 0.1, 1.0, 30.0, np.nan], np.float32)
    back = rate_of_reflectivity(reflectivity_of_rate(rate, ZR()), ZR())
    np.testing.assert_allclose(back, rate, rtol=1e-4)
    assert back[0] == 0


def test_an_event_is_the_same_for_rate_and_pixel():
    zr, scale = ZR(), Scale()
    table = rate_table(zr, scale, 0.1)
    pixel = pixel_of_rate(5.0, zr, scale)
    assert table[pixel] == pytest.approx(5.0, rel=0.02)
    assert table[pixel_of_rate(0.1, zr, scale) - 1] == 0
    assert table[0] == 0


def field(values, quantity="rain_rate", smallest=0.1):
    return RainField(np.array(values, np.float32), quantity, GRID, TIME, smallest)


def domain(coarsen=1, **quality):
    return brisbane_domain("x", grid={"native": True, "coarsen": coarsen}, quality=quality)


def test_no_echo_no_coverage_and_removed_stay_apart():
    frame, removed = make_frame(field([[0, 0.05, 1, np.nan], [900, 0.1, 0.2, 0]]), domain(max_rate_mm_h=500))
    assert frame.state.tolist() == [[NO_ECHO, NO_ECHO, ECHO, NO_COVERAGE], [REMOVED, ECHO, ECHO, NO_ECHO]]
    assert removed == pytest.approx(1 / 8)
    assert (frame.rain[frame.state != ECHO] == 0).all()


def test_the_sources_own_smallest_rate_is_rain_and_what_lies_below_is_not():
    frame, _ = make_frame(field([[0.3, 0.2]], smallest=0.3), domain())
    assert frame.state.tolist() == [[ECHO, NO_ECHO]]


def test_blocks_are_means_of_rain_rate_over_observed_cells():
    values = [[4, 0, 8, np.nan], [0, 0, np.nan, np.nan], [2, 2, np.nan, np.nan], [2, 2, 6, 2]]
    frame, _ = make_frame(field(values), domain(coarsen=2))
    expected = [
        [pixel_of_rate(1.0, ZR(), Scale()), 0],
        [pixel_of_rate(2.0, ZR(), Scale()), pixel_of_rate(4.0, ZR(), Scale())],
    ]
    assert frame.rain.tolist() == expected
    assert frame.state.tolist() == [[ECHO, NO_COVERAGE], [ECHO, ECHO]]


def test_blocks_of_reflectivity_are_means_of_rain_rate_too():
    dbz = reflectivity_of_rate(np.array([[4, 0], [0, 0]], np.float32), ZR())
    frame, _ = make_frame(field(dbz, "reflectivity"), domain(coarsen=2))
    assert frame.rain.tolist() == [[pixel_of_rate(1.0, ZR(), Scale())]]


def test_coarse_grid_keeps_the_outer_edge_and_drops_the_rest():
    grid = Grid("EPSG:3035", (5, 7), 500.0, -500.0, 1000.0, 1000.0).coarsened(2)
    assert (grid.shape, grid.west, grid.north, grid.dx) == ((2, 3), 1000.0, -1000.0, 2000.0)


def test_centred_grid_is_north_up_around_its_centre():
    grid = centred_grid("+proj=aeqd +lat_0=50 +lon_0=5 +units=m", (101, 101), 1000.0, (5.0, 50.0))
    lon, lat = grid.lon_lat()
    assert lat[0, 50] > lat[-1, 50] and lon[50, 0] < lon[50, -1]
    assert lon[50, 50] == pytest.approx(5) and lat[50, 50] == pytest.approx(50)


def test_correlation_by_hand():
    p, q = np.array([[3, 4]], np.uint8), np.array([[4, 3]], np.uint8)
    assert correlation(p, q) == pytest.approx(24 / 25)
    assert correlation(p, p) == pytest.approx(1.0)
    assert correlation(p, np.zeros_like(p)) == 0
    assert correlation(p, 2 * p) == pytest.approx(1.0)  # un-centred: a constant factor does not count


def frames_moving_east(count: int) -> list[Frame]:
    made = []
    for n in range(count):
        pixels = np.zeros((48, 48), np.uint8)
        y, x = np.mgrid[0:48, 0:48]
        blob = 180 * np.exp(-((y - 24) ** 2 + (x - 14 - 3 * n) ** 2) / 40)
        pixels[:] = np.where(blob > 70, blob, 0)
        made.append(Frame(pixels[None], np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8)))
    return made


def test_a_gap_is_filled_by_advection_from_both_sides():
    truth = frames_moving_east(5)
    instants = [TIME + n * timedelta(minutes=10) for n in range(5)]
    found = dict(zip(instants, truth, strict=True)) | {instants[2]: None}
    filled = fill_gaps(found, max_gap=1, floor_pixel=62)[instants[2]]
    assert set(np.unique(filled.state)) == {ADVECTED}
    assert not filled.observed.any()
    advected_error = np.abs(filled.rain.astype(int) - truth[2].rain).mean()
    stale_error = np.abs(truth[1].rain.astype(int) - truth[2].rain).mean()
    assert advected_error < 0.35 * stale_error


def test_gaps_longer_than_allowed_or_at_the_ends_stay():
    truth = frames_moving_east(5)
    instants = [TIME + n * timedelta(minutes=10) for n in range(5)]
    found = dict(zip(instants, truth, strict=True)) | {instants[1]: None, instants[2]: None}
    assert fill_gaps(found, 1, 62)[instants[1]] is None
    assert fill_gaps(found, 2, 62)[instants[1]] is not None
    first = dict(zip(instants, truth, strict=True)) | {instants[0]: None, instants[4]: None}
    made = fill_gaps(first, 2, 62)
    assert made[instants[0]] is None and made[instants[4]] is None


@given(st.integers(-(10**7), 10**9), st.sampled_from([5, 6, 10]))
def test_nearest_slot_is_on_the_axis_and_nearest(second, minutes):
    cadence = timedelta(minutes=minutes)
    time = times.EPOCH + timedelta(seconds=second)
    slot = times.nearest_slot(time, cadence)
    assert times.is_slot(slot, cadence)
    assert abs(slot - time) <= cadence / 2
    assert times.first_slot(time, cadence) >= time > times.first_slot(time, cadence) - cadence


def test_times_are_utc_and_inclusive():
    assert times.parse_time("2020-10-31") == datetime(2020, 10, 31, tzinfo=UTC)
    assert times.parse_time("2020-10-31T02:00+02:00") == datetime(2020, 10, 31, tzinfo=UTC)
    start, end = times.parse_time("2020-10-31T00:00Z"), times.parse_time("2020-10-31T23:50Z")
    assert len(list(times.slots(start, end, timedelta(minutes=10)))) == 144
    with pytest.raises(ValueError, match="ISO 8601"):
        times.parse_time("yesterday")


def test_reflectivity_is_held_at_the_hail_cap_and_removed_where_nothing_is_so_strong():
    domain = synthetic_domain()
    field = RainField(np.array([[54.0, 60.0, 74.0, 76.0]], np.float32), "reflectivity", GRID, TIME, 0.0)
    frame, removed = make_frame(field, domain)
    held = pixel_of_reflectivity(np.array([54.0, 55.0, 55.0], np.float32), domain.scale)
    assert frame.rain[0, :3].tolist() == held.tolist()
    assert (frame.state[0, 3], removed) == (REMOVED, 0.25)


def test_channels_are_observed_where_all_are():
    def made(*states) -> Frame:
        state = np.array([states], np.uint8)
        return Frame(np.where(state == ECHO, 100, 0).astype(np.uint8)[None], state)

    both = join_channels([made(ECHO, NO_ECHO, ECHO, NO_COVERAGE), made(NO_ECHO, ECHO, NO_COVERAGE, ECHO)])
    assert both.state.tolist() == [[ECHO, NO_ECHO, NO_COVERAGE, NO_COVERAGE]]
    assert both.pixels[:, 0].tolist() == [[100, 0, 0, 0], [0, 100, 0, 0]]

"""Where an echo lands on the map, what a beam at another height gives, what a hole and a silent radar stay."""

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pyproj import Geod

from pipeline.grids import centred_grid
from pipeline.radar.gridding import GriddedVolume, Level, grid_volume
from pipeline.radar.mosaic import combine
from pipeline.radar.volume import NO_ECHO_DBZ, Site, Sweep, Volume

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
SITE = Site(5.0, 51.0, 100.0)
CAPPI, LOWEST = (Level(),), (Level("lowest"),)
GRID = centred_grid("+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m", (301, 301), 1000.0, (5.0, 51.0))
CENTRE = 150


def sweep(elevation=0.5, rays=360, gates=300, fill=NO_ECHO_DBZ, time=T0, **changes) -> Sweep:
    azimuth = (np.arange(rays, dtype=np.float32) + 0.5) * 360 / rays
    dbz = np.full((rays, gates), fill, np.float32)
    made = Sweep(elevation, azimuth, 250.0, 500.0, dbz, None, None, True, False, time)
    return dataclasses.replace(made, **changes)


def volume(*sweeps: Sweep, radar="here", site=SITE) -> Volume:
    return Volume(radar, site, sweeps)


def with_echo(azimuth: float, distance_m: float, dbz=40.0, rays=360) -> Sweep:
    made = sweep(rays=rays)
    ray = np.abs((made.azimuth - azimuth + 180) % 360 - 180) <= 1.5
    gate = np.abs(made.range_m + made.gate_m * np.arange(300) - distance_m) <= 1500
    made.dbz[np.ix_(ray, gate)] = dbz
    return made


def full(gridded: GriddedVolume, values) -> np.ndarray:
    whole = np.full(GRID.shape, np.nan, np.float32)
    whole[gridded.window.slices] = values
    return whole


@pytest.mark.parametrize(
    ("azimuth", "row", "column"), [(0, -100, 0), (90, 0, 100), (180, 100, 0), (270, 0, -100), (45, -71, 71)]
)
def test_north_is_up_and_east_is_right(azimuth, row, column):
    gridded = grid_volume(volume(with_echo(azimuth, 100_000.0)), GRID, LOWEST)
    rows, columns = np.nonzero(full(gridded, gridded.dbz[0]) > 30)
    assert rows.mean() - CENTRE == pytest.approx(row, abs=0.7)
    assert columns.mean() - CENTRE == pytest.approx(column, abs=0.7)


def test_an_echo_lies_where_the_geodesic_says_on_another_projection():
    grid = centred_grid("EPSG:3035", (300, 300), 1000.0, (6.0, 51.5))  # the site lies off the centre, north is not up
    gridded = grid_volume(volume(with_echo(300.0, 60_000.0)), grid, LOWEST)
    whole = np.full(grid.shape, np.nan, np.float32)
    whole[gridded.window.slices] = gridded.dbz[0]
    lon, lat = grid.lon_lat()
    azimuth, _, distance = Geod(ellps="WGS84").inv(5.0, 51.0, lon[whole > 30].mean(), lat[whole > 30].mean())
    assert azimuth % 360 == pytest.approx(300, abs=0.3) and distance == pytest.approx(60_000, abs=700)


@pytest.mark.parametrize("rays", [359, 361, 367, 720])
def test_the_number_of_rays_does_not_move_the_echo(rays):
    gridded = grid_volume(volume(with_echo(90.0, 80_000.0, rays=rays)), GRID, LOWEST)
    rows, columns = np.nonzero(full(gridded, gridded.dbz[0]) > 30)
    assert (rows.mean() - CENTRE, columns.mean() - CENTRE) == pytest.approx((0, 80), abs=1)


def test_a_hole_stays_a_hole():
    whole = sweep()
    kept = (whole.azimuth < 60) | (whole.azimuth > 120)
    holed = dataclasses.replace(whole, azimuth=whole.azimuth[kept], dbz=whole.dbz[kept])
    dbz = full(grid := grid_volume(volume(holed), GRID, LOWEST), grid.dbz[0])
    assert np.isnan(dbz[CENTRE, CENTRE + 80]) and dbz[CENTRE, CENTRE - 80] == NO_ECHO_DBZ
    # a higher sweep without the hole fills it
    two = grid_volume(volume(holed, sweep(1.5, fill=20.0)), GRID, LOWEST)
    assert full(two, two.dbz[0])[CENTRE, CENTRE + 80] == 20.0


def test_cappi_interpolates_in_height_and_takes_the_nearest_beam_beyond():
    low, high = sweep(0.5, fill=20.0), sweep(2.0, fill=40.0)
    gridded = grid_volume(volume(low, high), GRID)
    dbz, height = full(gridded, gridded.dbz[0]), full(gridded, gridded.height[0])
    for km in (45, 55):  # beams at about 0.6 and 1.9 km, and 0.8 and 2.2 km
        h = [100 + km * 1e3 * np.sin(np.deg2rad(e)) + (km * 1e3) ** 2 / (2 * 4 / 3 * 6371e3) for e in (0.5, 2.0)]
        expected = 20 + 20 * (2000 - h[0]) / (h[1] - h[0]) if h[1] > 2000 else 40.0
        assert dbz[CENTRE, CENTRE + km] == pytest.approx(expected, abs=0.3)
    assert dbz[CENTRE, CENTRE + 20] == 40.0  # both below: the higher
    assert dbz[CENTRE, CENTRE + 140] == 20.0  # both above: the lower
    assert height[CENTRE, CENTRE + 140] == pytest.approx(100 + 140e3 * np.sin(np.deg2rad(0.5)) + 1153, abs=30)


def test_lowest_and_column_max():
    sweeps = sweep(0.5, fill=20.0), sweep(2.0, fill=40.0), sweep(5.0, fill=NO_ECHO_DBZ)
    for level, value in (("lowest", 20.0), ("column_max", 40.0)):
        gridded = grid_volume(volume(*sweeps), GRID, (Level(level),))
        assert full(gridded, gridded.dbz[0])[CENTRE, CENTRE + 50] == value


def test_a_gate_that_was_removed_takes_the_next_sweep_or_is_said_to_be_removed():
    low = sweep(0.5, fill=30.0)
    gone = np.zeros(low.dbz.shape, bool)
    gone[:, 100:] = True
    low = dataclasses.replace(low, dbz=np.where(gone, np.nan, low.dbz).astype(np.float32), removed=gone)
    high = sweep(2.0, gates=200, fill=10.0)  # reaches 100 km
    gridded = grid_volume(volume(low, high), GRID, LOWEST)
    dbz, removed = full(gridded, gridded.dbz[0]), full(gridded, gridded.removed)
    assert [dbz[CENTRE, CENTRE + km] for km in (40, 80)] == [30.0, 10.0]
    assert np.isnan(dbz[CENTRE, CENTRE + 120]) and removed[CENTRE, CENTRE + 120] == 1 and removed[CENTRE, 230] == 0


def test_of_repeated_cuts_the_reflectivity_cut_and_then_the_latest():
    doppler = sweep(0.48, fill=10.0, gates=200)
    first = sweep(0.5, fill=20.0, surveillance=True)
    again = sweep(0.5, fill=30.0, surveillance=True, time=T0 + timedelta(minutes=2))
    gridded = grid_volume(volume(doppler, first, again), GRID, LOWEST)
    assert np.nanmax(gridded.dbz) == np.nanmin(gridded.dbz) == 30.0
    assert gridded.time == again.time  # the time of what was used, not of the file


def test_a_radar_far_away_and_a_window_at_the_edge():
    assert grid_volume(volume(sweep(), site=Site(20.0, 51.0, 0.0)), GRID) is None
    edge = grid_volume(volume(sweep(), site=Site(7.0, 51.0, 0.0)), GRID, LOWEST, max_range_m=100e3)
    assert edge.window.right == 301 and edge.window.left > 150
    assert edge.dbz.shape == (1, edge.window.bottom - edge.window.top, edge.window.right - edge.window.left)


def gridded(radar: str, value: float, height: float = 2000.0) -> GriddedVolume:
    made = grid_volume(volume(sweep(fill=value), radar=radar), GRID, LOWEST)
    return dataclasses.replace(made, height=np.where(np.isnan(made.dbz), np.nan, height).astype(np.float32))


def at(mosaic) -> float:
    return float(mosaic.dbz[0, CENTRE, CENTRE + 50])


def test_a_mosaic_means_in_z_by_closeness_to_the_altitude():
    both = combine([gridded("a", 40.0), gridded("b", 20.0)], GRID.shape, CAPPI)
    assert at(both) == pytest.approx(10 * np.log10((1e4 + 1e2) / 2), abs=0.01) and both.radars == ("a", "b")
    far = combine([gridded("a", 40.0), gridded("b", 20.0, height=4000.0)], GRID.shape, CAPPI)
    w = np.exp(-4)
    assert at(far) == pytest.approx(10 * np.log10((1e4 + w * 1e2) / (1 + w)), abs=0.01)
    assert at(combine([gridded("a", 40.0), gridded("b", 20.0)], GRID.shape, CAPPI, "max")) == 40.0


def test_no_echo_votes_and_silence_does_not():
    assert at(combine([gridded("a", 40.0), gridded("b", NO_ECHO_DBZ)], GRID.shape, CAPPI)) == pytest.approx(
        36.99, abs=0.01
    )
    silent = combine([gridded("a", 40.0), gridded("b", np.nan)], GRID.shape, CAPPI)
    assert at(silent) == 40.0 and silent.radars == ("a",)
    assert at(combine([gridded("a", NO_ECHO_DBZ)], GRID.shape, CAPPI)) == NO_ECHO_DBZ
    nobody = combine([gridded("b", np.nan)], GRID.shape, CAPPI)
    assert np.isnan(nobody.dbz).all() and nobody.radars == ()
    assert np.isnan(combine([], GRID.shape, CAPPI).dbz).all()


def test_order_does_not_matter():
    parts = [gridded("a", 40.0), gridded("b", 20.0), gridded("c", 31.0, 900.0)]
    one, other = combine(parts, GRID.shape, CAPPI), combine(parts[::-1], GRID.shape, CAPPI)
    assert np.array_equal(one.dbz, other.dbz, equal_nan=True)


def test_a_repeat_that_was_cut_off_does_not_win_by_being_later():
    first = sweep(0.5, fill=20.0)
    again = dataclasses.replace(sweep(0.5, fill=30.0), time=first.time + timedelta(minutes=2))
    part = dataclasses.replace(again, azimuth=again.azimuth[:90], dbz=again.dbz[:90])
    assert (np.nanmax(grid_volume(volume(first, part), GRID, LOWEST).dbz)) == 20.0
    assert (np.nanmax(grid_volume(volume(first, again), GRID, LOWEST).dbz)) == 30.0


def test_a_beam_far_above_the_rain_is_no_measurement_of_it():
    high = volume(sweep(30.0, fill=NO_ECHO_DBZ))
    for level, far in ((CAPPI, np.nan), (LOWEST, np.nan), ((Level("column_max"),), NO_ECHO_DBZ)):
        dbz = full(made := grid_volume(high, GRID, level), made.dbz[0])
        assert dbz[CENTRE, CENTRE + 10] == NO_ECHO_DBZ
        assert np.array_equal(dbz[CENTRE, CENTRE + 40], np.float32(far), equal_nan=True)

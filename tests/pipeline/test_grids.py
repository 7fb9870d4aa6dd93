"""Grids: their place on the earth, their metres, one grid in other words, and their CF names."""

import warnings

import numpy as np
import pytest
from pyproj import Geod

from pipeline.grid_checks import grid_difference, grid_fault
from pipeline.grids import Grid, centred_grid
from pipeline.product_axes import _grid_mapping, length_unit, mapped

STERE = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752"
DUTCH = Grid(f"{STERE} +units=m +type=crs", (76, 70), 500.0, -3650500.0, 10000.0, 10000.0)


def grid_around(crs: str, lon: float = 5.0, lat: float = 51.0, spacing: float = 2000.0) -> Grid:
    return centred_grid(crs, (40, 60), spacing, (lon, lat))


@pytest.mark.parametrize(
    "other",
    [
        DUTCH,
        Grid(
            "+proj=stere +lat_ts=60.0 +a=6378137 +b=6356752 +lat_0=90 +no_defs", (76, 70), 500.0, -3650500.0, 1e4, 1e4
        ),
        Grid(f"{STERE} +units=km", (76, 70), 0.5, -3650.5, 10.0, 10.0),
        Grid(f"{STERE} +units=m", (76, 70), 500.05, -3650500.1, 10000.001, 9999.999),
        Grid(f"{STERE.replace('6378137', '6378140')}", (76, 70), 500.0, -3650500.0, 1e4, 1e4),
    ],
    ids=["itself", "reordered", "in km", "rounded corners", "an axis three metres longer"],
)
def test_the_same_grid_in_other_words_is_the_same(other):
    assert grid_difference(DUTCH, other) == ""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Grid(DUTCH.crs, (75, 70), 500.0, -3650500.0, 1e4, 1e4), "75 x 70 cells, not 76 x 70"),
        (Grid(DUTCH.crs, (76, 70), 1500.0, -3650500.0, 1e4, 1e4), "cells up to 0.1 cells away"),
        (Grid(DUTCH.crs, (76, 70), 500.0, -3650500.0, 10010.0, 1e4), "cells of 10010 x 10000, not 10000 x 10000"),
        (Grid(DUTCH.crs.replace("lat_ts=60", "lat_ts=50"), (76, 70), 500.0, -3650500.0, 1e4, 1e4), "lat_ts=50"),
    ],
)
def test_another_grid_is_told_by_its_difference(other, said):
    difference = grid_difference(DUTCH, other)
    assert said in difference, difference
    assert "up to" in difference or other.shape != DUTCH.shape


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (DUTCH, ""),
        (Grid("EPSG:4326", (30, 30), 170.0, -15.0, 0.5, 0.5), ""),  # across the date line
        (grid_around("EPSG:3857"), ""),
        (Grid("+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +o_lon_p=0 +lon_0=18", (30, 30), -5, 5, 0.1, 0.1), ""),
        (Grid(STERE.replace("6378137", "6378137000"), (76, 70), 500.0, -3650500.0, 1e4, 1e4), "axis of 6.37814e+09 m"),
        (Grid("+proj=ortho +lat_0=50", (10, 10), -9e6, 9e6, 2e6, 2e6), "do not come back"),
        (Grid("+proj=nonsense", (10, 10), 0.0, 0.0, 1.0, 1.0), "PROJ makes nothing"),
        (Grid(DUTCH.crs, (76, 70), 500.0, -3650500.0, 0.01, 0.01), "on the ground"),
    ],
)
def test_a_grid_without_a_place_on_the_earth_is_found(grid, said):
    fault = grid_fault(grid)
    assert said in fault and bool(fault) == bool(said), fault


@pytest.mark.parametrize(
    ("crs", "unit", "metres"),
    [("m", "m", 1.0), ("km", "km", 1000.0), ("us-ft", "US_survey_foot", 1200 / 3937), ("ft", "foot", 0.3048)],
)
def test_units_of_the_map_are_honoured(crs, unit, metres):
    grid = grid_around(f"+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5 +units={crs}", spacing=2000.0 / metres)
    assert grid.metres_per_unit == pytest.approx(metres) and length_unit(grid) == unit
    assert grid.spacing_m == pytest.approx(2000.0)
    assert grid.ground_spacing_km == pytest.approx((2.0, 2.0), rel=1e-3)


def test_spacing_of_web_mercator_is_that_on_the_ground():
    grid = grid_around("EPSG:3857", lat=60.0)
    lon, lat = grid.lon_lat()
    _, _, apart = Geod(ellps="WGS84").inv(lon[20, 30], lat[20, 30], lon[20, 31], lat[20, 31])
    assert grid.spacing_m == pytest.approx(apart, rel=0.005) and apart == pytest.approx(1003, rel=0.01)
    assert grid_around(STERE).spacing_m == 2000.0  # nearly true to scale: what its own metres say


# what appendix F of CF asks of each mapping; the projections of PROJ that have one
TRUE_EASTING = {"false_easting", "false_northing"}
MAPPINGS = {
    "+proj=aea +lat_1=-18 +lat_2=-36 +lat_0=-27 +lon_0=153": (
        "albers_conical_equal_area",
        {"standard_parallel", "longitude_of_central_meridian", "latitude_of_projection_origin"},
    ),
    "+proj=aeqd +lat_0=51 +lon_0=5": (
        "azimuthal_equidistant", {"longitude_of_projection_origin", "latitude_of_projection_origin"},
    ),
    "+proj=laea +lat_0=51 +lon_0=5": (
        "lambert_azimuthal_equal_area", {"longitude_of_projection_origin", "latitude_of_projection_origin"},
    ),
    "+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5": (
        "lambert_conformal_conic",
        {"standard_parallel", "longitude_of_central_meridian", "latitude_of_projection_origin"},
    ),
    "+proj=lcc +lat_1=51 +lat_0=51 +lon_0=5 +R=6371229": (
        "lambert_conformal_conic",
        {"standard_parallel", "longitude_of_central_meridian", "latitude_of_projection_origin"},
    ),
    "+proj=cea +lat_ts=50 +lon_0=5": (
        "lambert_cylindrical_equal_area", {"longitude_of_central_meridian", "standard_parallel"},
    ),
    "+proj=merc +lon_0=5 +lat_ts=50": ("mercator", {"longitude_of_projection_origin", "standard_parallel"}),
    "+proj=merc +lon_0=5": ("mercator", {"longitude_of_projection_origin", "scale_factor_at_projection_origin"}),
    "+proj=merc +a=6378137 +b=6378137 +lon_0=0 +units=m +nadgrids=@null": (
        "mercator", {"longitude_of_projection_origin", "scale_factor_at_projection_origin", "semi_major_axis"},
    ),
    "EPSG:3857": ("mercator", {"longitude_of_projection_origin", "standard_parallel", "semi_major_axis"}),
    "+proj=omerc +lat_0=51 +lonc=5 +alpha=30": (
        "oblique_mercator",
        {"azimuth_of_central_line", "latitude_of_projection_origin", "longitude_of_projection_origin",
         "scale_factor_at_projection_origin"},
    ),
    "EPSG:21781": ("oblique_mercator", {"azimuth_of_central_line", "scale_factor_at_projection_origin"}),
    "+proj=ortho +lat_0=51 +lon_0=5": (
        "orthographic", {"longitude_of_projection_origin", "latitude_of_projection_origin"},
    ),
    STERE: (
        "polar_stereographic",
        {"straight_vertical_longitude_from_pole", "latitude_of_projection_origin", "standard_parallel"},
    ),
    "+proj=stere +lat_0=90 +lon_0=5 +k=0.97": (
        "polar_stereographic",
        {"straight_vertical_longitude_from_pole", "latitude_of_projection_origin", "scale_factor_at_projection_origin"},
    ),
    "+proj=stere +lat_0=51 +lon_0=5": (
        "stereographic",
        {"longitude_of_projection_origin", "latitude_of_projection_origin", "scale_factor_at_projection_origin"},
    ),
    "+proj=sinu +lon_0=5": ("sinusoidal", {"longitude_of_projection_origin"}),
    "+proj=tmerc +lat_0=51 +lon_0=5": (
        "transverse_mercator",
        {"scale_factor_at_central_meridian", "longitude_of_central_meridian", "latitude_of_projection_origin"},
    ),
    "+proj=utm +zone=31": (
        "transverse_mercator",
        {"scale_factor_at_central_meridian", "longitude_of_central_meridian", "latitude_of_projection_origin"},
    ),
    "+proj=nsper +lat_0=51 +lon_0=5 +h=3000000": (
        "vertical_perspective",
        {"longitude_of_projection_origin", "latitude_of_projection_origin", "perspective_point_height"},
    ),
    "+proj=geos +h=35785831 +lon_0=5": (
        "geostationary",
        {"latitude_of_projection_origin", "longitude_of_projection_origin", "perspective_point_height",
         "sweep_angle_axis"},
    ),
    "+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +o_lon_p=0 +lon_0=18": (
        "rotated_latitude_longitude", {"grid_north_pole_latitude", "grid_north_pole_longitude"},
    ),
    "EPSG:4326": ("latitude_longitude", set()),
}  # fmt: skip


@pytest.mark.parametrize("crs", MAPPINGS)
def test_cf_names_of_the_projections_that_have_one(crs):
    name, wanted = MAPPINGS[crs]
    spacing = 0.02 if name in ("latitude_longitude", "rotated_latitude_longitude") else 2000.0
    grid = grid_around(crs, spacing=spacing)
    mapping = _grid_mapping(grid)
    assert mapping["grid_mapping_name"] == name and wanted <= set(mapping), mapping
    if spacing > 1:
        assert set(mapping) >= TRUE_EASTING
    assert mapped(grid) == {"grid_mapping": "crs"} and mapping["crs_wkt"]
    assert grid_fault(grid) == ""


def test_projections_without_a_cf_name_are_not_given_one():
    """Every projection that PROJ can make is either named by CF, or written as text beside longitude and latitude."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError
    from pyproj.list import get_proj_operations_map

    general = "+lat_1=40 +lat_2=50 +lon_1=1 +lon_2=9 +h=35785831 +zone=31 +n=0.5 +m=1 +W=1 +lat_ts=60 +alpha=30"
    names = set()
    for projection in get_proj_operations_map():
        try:
            crs = CRS.from_user_input(f"+proj={projection} {general} +ellps=WGS84 +type=crs")
        except CRSError:
            continue
        if not crs.is_projected:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grid = Grid(crs.to_wkt(), (9, 9), 0.0, 0.0, 1e3, 1e3)
            mapping = _grid_mapping(grid)
        assert mapping["crs_wkt"], projection
        names.add(mapping.get("grid_mapping_name"))
    assert names - {None} <= {name for name, _ in MAPPINGS.values()}


def test_coarsened_grids_keep_their_place():
    grid = grid_around(STERE)
    coarse = grid.coarsened(4)
    np.testing.assert_allclose(coarse.x[0], grid.x[:4].mean())
    assert grid_difference(coarse, grid_around(STERE).coarsened(4)) == ""

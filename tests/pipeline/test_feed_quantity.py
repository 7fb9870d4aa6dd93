"""One quantity of a feed is taken and kept; files of others are left alone and named, and none ends the feed."""

import json
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest

from pipeline.domain import Domain
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.frames.frame_source import FrameSource
from pipeline.grids import Grid, centred_grid
from pipeline.ingest import ingest
from pipeline.sources.gridded import GriddedFiles
from pipeline.sources.synthetic import write_composite
from tests.conftest import NOW, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
CRS = "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs"
GRID = centred_grid(CRS, (64, 64), 2000.0, (5.0, 51.0))
RAIN = np.maximum(np.random.default_rng(7).normal(0, 4, (64, 64)), 0).astype(np.float32)


def domain_of(folder, **source) -> Domain:
    folder.mkdir(exist_ok=True)
    kind = {"kind": "gridded", "reader": "odim_comp", "uri": str(folder), **source}
    return synthetic_domain("odim", grid={"native": True}, source=kind)


def put(folder, time, quantity, seconds=600.0, grid=GRID):
    """A composite of a quantity; DBZH has the rain in dBZ, ACRR in mm over ``seconds``."""
    path = folder / f"OPERA@{time:%Y%m%dT%H%M}@0@{quantity}.h5"
    write_composite(path, RAIN, grid, time)
    start = time - timedelta(seconds=seconds)
    with h5py.File(path, "r+") as file:
        what = file["dataset1/data1/what"].attrs
        what["quantity"] = quantity
        if quantity in ("DBZH", "TH"):
            what["gain"], what["offset"] = 0.05, -10.0
        if quantity == "ACRR":
            what["gain"] = 0.01 * seconds / 3600
            file["dataset1/what"].attrs.update({"startdate": f"{start:%Y%m%d}", "starttime": f"{start:%H%M%S}"})
    return path


def take_in(domain, store, catalog):
    return ingest(domain, store, catalog, T0 - timedelta(days=1), T0 + timedelta(days=1), NOW)


def test_a_feed_of_three_quantities_gives_frames_of_one(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in")
    for n in range(2):
        for quantity, seconds in (("ACRR", 3600.0), ("DBZH", 0), ("RATE", 0), ("QIND", 0)):
            put(tmp_path / "in", T0 + n * STEP, quantity, seconds)
    result = take_in(domain, store, catalog)
    assert (result.framed, result.quarantined, len(result.left_alone)) == (2, [], 6)
    assert "expected DBZH, found quantity RATE" in dict(result.left_alone)["OPERA@20240601T0200@0@RATE.h5"]
    assert Archive(store, domain).source().quantity == "DBZH"
    put(tmp_path / "in", T0 + 2 * STEP, "RATE")  # it stays DBZH, also when the other comes alone
    later = take_in(domain, store, catalog)
    assert (later.framed, later.unchanged, len(later.left_alone)) == (0, 8, 1)
    assert take_in(domain, store, catalog).unchanged == 9  # what is left alone is not read again


def test_the_settings_say_which_quantity(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in", quantity="RATE")
    for quantity in ("DBZH", "RATE"):
        put(tmp_path / "in", T0, quantity)
    result = take_in(domain, store, catalog)
    assert (result.framed, [key for key, _ in result.left_alone]) == (1, ["OPERA@20240601T0200@0@DBZH.h5"])
    put(tmp_path / "in", T0 + STEP, "DBZH")
    with pytest.raises(SettingsError, match=r"source\.quantity is now DBZH, but the archive .* was made from RATE"):
        take_in(domain_of(tmp_path / "in", quantity="DBZH"), store, catalog)


def test_other_settings_of_reading_look_at_the_files_again(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in", quantity="RATE")
    put(tmp_path / "in", T0, "DBZH")
    assert len(take_in(domain, store, catalog).left_alone) == 1
    assert take_in(domain_of(tmp_path / "in"), store, catalog).framed == 1


def test_one_hourly_sum_does_not_end_a_feed_and_only_hourly_sums_do(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in")
    put(tmp_path / "in", T0, "ACRR", 3600.0)
    with pytest.raises(SettingsError, match=r"cadence_minutes = 10, .* is a mean over 60 minutes"):
        take_in(domain, store, catalog)
    put(tmp_path / "in", T0 + STEP, "ACRR")
    put(tmp_path / "in", T0 + 2 * STEP, "ACRR", 3600.0)
    result = take_in(domain, store, catalog)
    assert (result.framed, len(result.left_alone), result.quarantined) == (1, 2, [])
    assert all("a mean over 60 minutes" in reason for _, reason in result.left_alone)


def test_an_archive_of_before_keeps_its_frames_and_learns_its_quantity(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in")
    put(tmp_path / "in", T0, "RATE")
    take_in(domain, store, catalog)
    about = store.archive("odim") / "about.json"
    before = json.loads(about.read_text())
    del before["source"]["quantity"]
    about.write_text(json.dumps(before))
    for quantity in ("RATE", "TH"):
        put(tmp_path / "in", T0 + STEP, quantity)
    result = take_in(domain, store, catalog)
    assert (result.framed, len(result.left_alone)) == (1, 1)
    after = json.loads(about.read_text())
    assert after["source"].pop("quantity") == "RATE" and after == before
    assert Archive(store, domain).read(T0) is not None


def source_of(grid=GRID, floor=0.12, interval=300.0, quantity="") -> FrameSource:
    return FrameSource(grid, floor, interval, quantity)


def test_frames_that_mean_the_same_are_alike_and_others_differ_by_what_is_said():
    cadence = timedelta(minutes=5)
    for other in (
        source_of(),
        source_of(floor=0.12 * 300 / 299, interval=299.0),
        source_of(floor=0.12 * 300 / 301, interval=301.0),
        source_of(Grid(CRS + " +no_defs", GRID.shape, GRID.west + 0.1, GRID.north, GRID.dx, GRID.dy)),
        source_of(quantity="ACRR"),
    ):
        assert source_of().difference(other, cadence) == ""
    assert source_of().difference(source_of(interval=600.0), cadence) == "means over 600 s, not over 300 s"
    assert source_of().difference(source_of(floor=0.3), cadence) == "smallest rain 0.3 mm/h, not 0.12 mm/h"
    kept = source_of(quantity="DBZH")
    assert kept.difference(source_of(quantity="TH"), cadence) == "quantity TH, not DBZH"


def test_a_feed_goes_on_when_its_header_is_written_in_other_words(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in")
    put(tmp_path / "in", T0, "ACRR", 600.0)
    assert take_in(domain, store, catalog).framed == 1
    about = (store.archive("odim") / "about.json").read_text()
    words = Grid(
        "+ellps=WGS84 +proj=laea +units=m +lon_0=5.0 +lat_0=51.0 +no_defs",
        GRID.shape, GRID.west + 0.2, GRID.north - 0.1, GRID.dx, GRID.dy,
    )  # fmt: skip
    put(tmp_path / "in", T0 + STEP, "ACRR", 601.0, words)
    kilometres = Grid(CRS.replace("units=m", "units=km"), GRID.shape, GRID.west / 1e3, GRID.north / 1e3, 2.0, 2.0)
    put(tmp_path / "in", T0 + 2 * STEP, "ACRR", 599.0, kilometres)
    result = take_in(domain, store, catalog)
    assert (result.framed, result.quarantined, result.left_alone) == (2, [], [])
    assert (store.archive("odim") / "about.json").read_text() == about
    moved = Grid(GRID.crs, GRID.shape, GRID.west + 500, GRID.north, GRID.dx, GRID.dy)
    put(tmp_path / "in", T0 + 3 * STEP, "ACRR", 600.0, moved)
    ((_, reason),) = take_in(domain, store, catalog).quarantined
    assert "cells up to 0.25 cells away" in reason and reason.count("64 x 64") == 1


def test_settings_may_write_the_same_projection_in_other_words(tmp_path, store, catalog):
    before = synthetic_domain()
    ingest(before, store, catalog, T0, T0, NOW)
    grid = before.grid.model_copy(update={"crs": "+lon_0=5 +lat_0=51.0 +proj=laea +ellps=WGS84 +units=m +no_defs"})
    assert Archive(store, before.model_copy(update={"grid": grid})).read(T0) is not None
    grid = before.grid.model_copy(update={"crs": CRS.replace("lat_0=51", "lat_0=52")})
    with pytest.raises(SettingsError, match="grid"):
        Archive(store, before.model_copy(update={"grid": grid})).source()


def test_a_grid_is_tried_before_its_first_frame(tmp_path, store, catalog):
    domain = domain_of(tmp_path / "in")
    path = put(tmp_path / "in", T0, "DBZH")
    with h5py.File(path, "r+") as file:
        where = file["where"].attrs
        where["UR_lon"], where["UR_lat"] = where["LL_lon"] + 1e-5, where["LL_lat"] + 1e-5
    ((_, reason),) = take_in(domain, store, catalog).quarantined
    assert "the grid cannot be used" in reason
    assert Archive(store, domain).source() is None
    put(tmp_path / "in", T0 + STEP, "DBZH")
    assert take_in(domain, store, catalog).framed == 1


def test_composites_that_may_be_dry_or_missing_are_refused_with_the_name_of_the_setting(tmp_path, store, catalog):
    folder = tmp_path / "in"
    domain = domain_of(folder)
    with h5py.File(put(folder, T0, "RATE"), "r+") as file:
        file["dataset1/data1/what"].attrs["nodata"] = 0.0
    ((_, reason),) = take_in(domain, store, catalog).quarantined
    assert "source.shared_code" in reason
    result = take_in(domain_of(folder, shared_code="dry"), store, catalog)
    assert (result.framed, result.quarantined) == (1, [])
    assert Archive(store, domain).read(T0).observed.all()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"reader": "fmi_pgm", "quantity": "DBZH"}, "quantity: the files of fmi_pgm have one only"),
        ({"reader": "mch_gif", "shared_code": "dry"}, "not for mch_gif"),
        ({"quantity": "VRADH"}, "quantity"),
        ({"dataset": "../x"}, "dataset"),
    ],
)
def test_settings_of_reading_are_for_the_formats_that_leave_something_open(tmp_path, source, said):
    with pytest.raises(ValueError, match=said):
        domain_of(tmp_path / "in", **source)


def test_names_that_do_not_fit_are_told_with_the_pattern_and_an_example(tmp_path):
    folder = tmp_path / "in"
    config = domain_of(folder, reader="fmi_pgm").source
    for n in range(3):
        (folder / f"radar_{n}.pgm").write_bytes(b"x")
    told = []
    assert GriddedFiles(config).list(T0, T0 + STEP, warn=told.append) == []
    (line,) = told
    assert "none of the 3 names" in line and "radar_0.pgm" in line and r"_fmi\.radar" in line

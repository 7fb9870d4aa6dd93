"""Volumes as they come in use: mixed hints, malfunctions, odd datasets, other units, bytes too many. Small and made."""

import gzip
import logging
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from pipeline.errors import BadInput, StoreUnavailable
from pipeline.radar.clutter import ClutterMap, map_path, read_map, write_map
from pipeline.radar.formats import plain_file
from pipeline.radar.recognise import sniff
from pipeline.radar.volume import NO_ECHO_DBZ, Site
from pipeline.sources import open_polar_source
from pipeline.sources.volumes import _header_time
from tests.pipeline.test_ingest_volumes import T0, feed
from tests.pipeline.test_radar_bad_input import LATER, put, read, said, scan, write

NAME = "v"


def gamic(path: Path, code: int = 124, rays: int = 360) -> Path:
    """A volume as MURAN writes it: what/object = PVOL as in ODIM, but scans, moments and ray headers of GAMIC."""
    with h5py.File(path, "w") as file:
        what = {"object": b"PVOL", "version": b"6", "date": b"2024-06-01", "time": b"03:00:00Z", "sets": 1}
        file.create_group("what").attrs.update(
            {k: np.bytes_(v) if isinstance(v, bytes) else v for k, v in what.items()}
        )
        file.create_group("where").attrs.update(lon=5.0, lat=51.0, height=100.0)
        file.create_group("how").attrs["software"] = np.bytes_("MURAN")
        kinds = [(f"{a}_{e}", "f8") for a in ("azimuth", "elevation") for e in ("start", "stop")]
        for n, elevation in enumerate((0.5, 1.5)):
            group = file.create_group(f"scan{n}")
            group.create_group("what").attrs["product"] = np.bytes_("SCAN")
            how = {"elevation": elevation, "bin_count": 200, "range_step": 500.0, "range_samples": 1}
            group.create_group("how").attrs.update(how, timestamp=np.bytes_("2024-06-01T03:00:00Z"))
            microseconds = int(T0.timestamp() * 1e6)
            header = [(r, r + 1, elevation, elevation, microseconds + r * 50_000) for r in range(rays)]
            group["ray_header"] = np.array(header, [*kinds, ("timestamp", "i8")])
            group["moment_0"] = np.where(scan().dbz > 0, code, 0).astype(np.uint8)
            about = {"dyn_range_min": np.float32(-31.5), "dyn_range_max": np.float32(95.5), "moment": np.bytes_("Zh")}
            group["moment_0"].attrs.update(about)
    return path


def test_gamic_that_calls_itself_pvol_is_read_as_gamic(tmp_path):
    volume = read(gamic(tmp_path / NAME))
    assert [sweep.elevation for sweep in volume.sweeps] == [0.5, 1.5]
    assert np.array_equal(volume.sweeps[0].dbz, scan().dbz)
    with h5py.File(tmp_path / NAME, "r+") as file:
        del file["scan0/how"]
    told = said(tmp_path / NAME)
    assert "scan0 with moment_0" in told and "what/object = 'PVOL' (ODIM)" in told  # both hints


def test_formats_are_told_by_what_only_they_have(tmp_path):
    def kind(edit) -> str:
        path = write(tmp_path / NAME, edit=edit)
        try:
            return sniff(path, NAME).kind
        except BadInput as err:
            return str(err)

    assert kind(id) == "odim"
    assert kind(put("what", object=None)) == "odim"  # its data tell it
    assert kind(put("what", object=np.bytes_("COMP"))).count("COMP") == 1
    assert "found HDF5 with" in kind(lambda file: [file.pop(k) for k in list(file) if k != "how"])
    (tmp_path / "cdf").write_bytes(b"CDF\x01" + bytes(200))
    assert "netCDF without sweeps" in said(tmp_path / "cdf")
    product = b"\x1b\0\x08\0" + bytes(8) + b"\x1a\0\x08\0" + bytes(8) + struct.pack("<H", 5) + bytes(100)
    (tmp_path / "iris").write_bytes(product)
    assert "expected an IRIS volume (product type RAW, 15), found a product of type 5" in said(tmp_path / "iris")


@pytest.mark.parametrize("value", [np.bytes_("True"), "true", True, 1, np.array([1], np.int8)], ids=repr)
def test_what_says_that_it_is_malfunctioning_is_left_out(tmp_path, value):
    def broken(*groups):
        return lambda file: [file.require_group(f"{group}/how").attrs.update(malfunc=value) for group in groups]

    volume = read(write(tmp_path / NAME, edit=broken("dataset1")))
    assert [s.elevation for s in volume.sweeps] == [1.5] and "dataset1: the radar was malf" in volume.defects[0]
    assert "malfunctioning" in read(write(tmp_path / NAME, edit=broken("dataset2/data1"))).defects[0]
    for groups in (("",), ("dataset1", "dataset2"), ("dataset1/data1", "dataset2/data1")):
        with pytest.raises(BadInput, match="the radar was malfunctioning"):
            read(write(tmp_path / NAME, edit=broken(*groups)))


@pytest.mark.parametrize("value", [np.bytes_("False"), "no", False, 0, ""], ids=repr)
def test_what_says_that_it_works_is_used(tmp_path, value):
    edit = lambda file: file.require_group("how").attrs.update(malfunc=value)  # noqa: E731
    assert read(write(tmp_path / NAME, edit=edit)).defects == ()


def starts(metres: bool, version, rstart: float):
    def edit(file):
        file.attrs.pop("Conventions")
        file["what"].attrs.pop("version")
        if version:
            file.attrs["Conventions"] = np.bytes_(version)
        for n in (1, 2):
            file[f"dataset{n}/where"].attrs["rstart"] = rstart

    return edit


@pytest.mark.parametrize(
    ("version", "rstart", "first"),
    [
        ("ODIM_H5/V2_3", 1.0, 1250), ("ODIM_H5/V2_4", 1000.0, 1250), ("ODIM_H5/2_4,RACK", 1000.0, 1250),
        ("ODIM_H5/V2.4", 1000.0, 1250), (None, 1000.0, 1250), (None, 1.0, 1250), ("ODIM_H5/V2_3", 124.0, 374),
        ("ODIM_H5/V2_4", 1.4, 1650), ("ODIM_H5/V2_4", 0.0, 250), (None, 0.0, 250), ("ODIM_H5/V2_3", -0.25, 0),
    ],
)  # fmt: skip
def test_distance_of_the_first_gate_is_what_is_plausible(tmp_path, version, rstart, first):
    assert {s.range_m for s in read(write(tmp_path / NAME, edit=starts(True, version, rstart))).sweeps} == {first}


@pytest.mark.parametrize(("version", "rstart"), [(None, 10.0), ("ODIM_H5/V2_3", 90_000.0)], ids=["both", "neither"])
def test_a_distance_that_nothing_decides_is_refused_with_the_setting(tmp_path, version, rstart):
    path = write(tmp_path / NAME, edit=starts(True, version, rstart))
    with pytest.raises(BadInput, match="rstart_unit"):
        read(path)
    assert read(path, rstart_unit="m").sweeps[0].range_m == rstart + 250


def with_raw(first: bool):
    """TH, 60 dBZ everywhere, beside DBZH; before or after it."""

    def edit(file):
        for n in (1, 2):
            group = file[f"dataset{n}"]
            group.copy("data1", "data3")
            group["data3/data"][...] = 184
            group["data3/what"].attrs["quantity"] = np.bytes_("TH")
            if first:
                group.move("data1", "data9")
                group.move("data3", "data1")

    return edit


@pytest.mark.parametrize("first", [True, False])
def test_filtered_reflectivity_comes_before_raw(tmp_path, first):
    volume = read(write(tmp_path / NAME, edit=with_raw(first)))
    assert all(s.filtered and np.nanmax(s.dbz) == 30 for s in volume.sweeps)


def test_a_raw_sweep_of_the_same_elevation_is_left_alone(tmp_path):
    raw = lambda file: put("dataset1/data1/what", quantity=np.bytes_("TH"))(file)  # noqa: E731
    both = read(write(tmp_path / NAME, scan(), scan(start=LATER), edit=raw))
    assert [s.filtered for s in both.sweeps] == [True]
    alone = read(write(tmp_path / NAME, scan(), scan(1.5, start=LATER), edit=raw))
    assert [s.filtered for s in alone.sweeps] == [False, True]  # of its elevation there is nothing better


def legends(file):
    table = np.array([(0, b"no echo"), (1, b"rain")], [("key", "i4"), ("value", "S20")])
    for n in (1, 2):
        file[f"dataset{n}"].create_group("quality1")["legend"] = table
        file[f"dataset{n}/data1"].create_group("quality1")["legend"] = table
        file[f"dataset{n}"]["legend"] = table
    file["legend"] = table
    file.create_group("datasets of old")
    file["dataset1/data7"] = h5py.SoftLink("/nowhere")
    file["dataset2/data8"] = h5py.ExternalLink("nowhere.h5", "/x")
    file["dataset2/data2/data"].attrs["ref"] = file["legend"].ref


def test_what_is_not_needed_cannot_fail(tmp_path):
    volume = read(write(tmp_path / NAME, edit=legends))
    plain = read(write(tmp_path / "plain"))
    assert volume.defects == () and len(volume.sweeps) == 2
    for sweep, other in zip(volume.sweeps, plain.sweeps, strict=True):
        assert np.array_equal(sweep.dbz, other.dbz) and np.array_equal(sweep.rhohv, other.rhohv)


def test_a_broken_second_moment_costs_only_itself(tmp_path):
    edit = lambda file: file["dataset1/data2/what"].attrs.update(gain=0.0)  # noqa: E731
    volume = read(write(tmp_path / NAME, edit=edit))
    assert [s.rhohv is None for s in volume.sweeps] == [True, False] and "gain is 0.0" in volume.defects[0]


@pytest.mark.parametrize("units", ["km", "kilometers", "m", "meters", None])
@pytest.mark.parametrize("form", ["cfradial1", "cfradial2"])
def test_the_range_of_cfradial_is_in_the_units_it_says(tmp_path, units, form):
    import xradar as xd

    tree = xd.io.open_odim_datatree(str(write(tmp_path / "odim")))
    {"cfradial1": xd.io.to_cfradial1, "cfradial2": xd.io.to_cfradial2}[form](tree, str(tmp_path / NAME))
    with h5py.File(tmp_path / NAME, "r+") as file:
        for ranges in [file[key] for key in ("range", "sweep_0/range", "sweep_1/range") if key in file]:
            if units is None:
                del ranges.attrs["units"]
            else:
                ranges.attrs["units"] = units
                ranges[...] = ranges[...] / (1000 if units.startswith("k") else 1)
    assert {(s.range_m, s.gate_m) for s in read(tmp_path / NAME).sweeps} == {(250, 500)}


def ragged(path: Path, lengths=(200, 150, 120)) -> Path:
    """CfRadial with rays of unequal length inside each of two sweeps."""
    rays = 2 * 360
    counts = np.array([lengths[n % len(lengths)] for n in range(rays)])
    dbz = np.concatenate([np.where(np.arange(c) < 100, -9999, 30 * 100).astype("i2") for c in counts])
    seconds = {"units": "seconds since 2024-06-01T03:00:00Z"}
    packed = {"scale_factor": 0.01, "add_offset": 0.0, "_FillValue": np.int16(-9999), "units": "dBZ"}
    data = xr.Dataset(
        {
            "azimuth": ("time", np.tile(np.arange(360) + 0.5, 2)),
            "elevation": ("time", np.repeat([0.5, 1.5], 360)),
            "ray_n_gates": ("time", counts),
            "ray_start_index": ("time", np.cumsum(counts) - counts),
            "sweep_number": ("sweep", [0, 1]),
            "fixed_angle": ("sweep", [0.5, 1.5]),
            "sweep_start_ray_index": ("sweep", [0, 360]),
            "sweep_end_ray_index": ("sweep", [359, 719]),
            "sweep_mode": ("sweep", np.array([b"azimuth_surveillance"] * 2)),
            "latitude": 51.0,
            "longitude": 5.0,
            "altitude": 100.0,
            "volume_number": 0,
            "DBZ": ("n_points", dbz, packed),
        },
        {
            "time": ("time", np.arange(rays) * 0.05, seconds),
            "range": ("range", 250.0 + 500 * np.arange(200), {"units": "meters"}),
        },
    )
    data.to_netcdf(path, engine="h5netcdf")
    return path


def test_rays_of_unequal_length_are_read_and_behind_their_end_nothing_was_measured(tmp_path):
    volume = read(ragged(tmp_path / NAME))
    assert [s.elevation for s in volume.sweeps] == [0.5, 1.5]
    for sweep in volume.sweeps:
        assert sweep.dbz.shape == (360, 200) and (sweep.range_m, sweep.gate_m) == (250, 500)
        for ray, length in ((0, 200), (1, 150), (2, 120)):
            assert (sweep.dbz[ray, :100] == NO_ECHO_DBZ).all() and (sweep.dbz[ray, 100:length] == 30).all()
            assert np.isnan(sweep.dbz[ray, length:]).all()
    with h5py.File(tmp_path / NAME, "r+") as file:
        file["ray_start_index"][5] = 10**9
    assert "go beyond its" in said(tmp_path / NAME)


def test_an_altitude_that_is_no_number_is_called_that(tmp_path):
    path = write(tmp_path / NAME, edit=put("where", height=np.nan))
    assert "no height of the antenna (its altitude is nan" in said(path)
    assert read(path, site=Site(5.0, 51.0, 100.0)).site.altitude == 100


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda f: [f.pop(k) for k in list(f) if k.startswith("dataset")], "it holds no sweep"),
        (put("dataset1/what", enddate=np.bytes_("")), "enddate is '', expected YYYYMMDD"),
        (put("dataset1/where", nrays="many"), "nrays is"),
    ],
    ids=["no sweeps", "no date", "text for a number"],
)
def test_errors_are_in_the_users_words_first(tmp_path, edit, words):
    told = said(write(tmp_path / NAME, edit=edit))
    assert words in told and not {"out of bounds", "at least one", "visitation"} & {w for w in told.split("(")[:1]}


def test_a_file_that_is_cut_off_is_called_that(tmp_path):
    path = write(tmp_path / NAME)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert f"the file is cut off: {len(data) // 2} of {len(data)} bytes" in said(path)


def test_the_machines_faults_are_no_faults_of_a_file(tmp_path, monkeypatch):
    path = write(tmp_path / NAME)

    def fail(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pipeline.radar.recognise.h5py.File", fail)
    with pytest.raises(OSError, match="Too many open files"):
        read(path)
    _header_time.cache_clear()
    with pytest.raises(OSError, match="Too many open files"):
        _header_time(str(path), "1")
    monkeypatch.undo()
    assert _header_time(str(path), "1") == T0


def test_an_offset_in_a_name_is_honoured(tmp_path):
    domain = feed(tmp_path, pattern=r"(?P<radar>[a-z]+)_(?P<time>[^.]+)\.h5", time_format="%Y%m%dT%H%M%S%z")
    (tmp_path / "west_20240601T050000+0200.h5").write_bytes(b"x")
    (ref,) = open_polar_source(domain).list(T0, T0)
    assert ref.nominal_time == T0 == datetime(2024, 6, 1, 3, tzinfo=UTC)


def test_a_feed_none_of_whose_names_fits_says_so_with_an_example(tmp_path):
    domain = feed(tmp_path, pattern=r"(?P<radar>[a-z]+)_(?P<time>\d{14})\.nc")
    for n in range(3):
        (tmp_path / f"west_{n}.h5").write_bytes(b"x")
    told: list[str] = []
    assert open_polar_source(domain).list(T0, T0 + timedelta(hours=1), warn=told.append) == []
    assert len(told) == 1 and all(part in told[0] for part in ("none of the 3", "west_0.h5", r"\d{14})\.nc"))


def test_bytes_that_cannot_be_kept_now_are_not_dropped(tmp_path, monkeypatch, caplog):
    domain = feed(tmp_path / "in")
    write(tmp_path / "in" / "west_20240601T030000Z.h5")
    source = open_polar_source(domain)
    (ref,) = source.list(T0, T0)

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(source.where, "fetch", fail)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="Input/output"):
        source.files(ref, tmp_path)


def test_a_clutter_map_that_cannot_be_read_now_is_not_to_be_removed(tmp_path, monkeypatch):
    write_map(map_path(tmp_path, "west"), ClutterMap())

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipeline.radar.clutter.np.load", fail)
    with pytest.raises(StoreUnavailable, match=r"cannot be read now: Input/output error$"):
        read_map(tmp_path, "west")
    monkeypatch.undo()
    assert read_map(tmp_path, "west") == ClutterMap()


def test_raw_and_filtered_files_of_one_cycle(tmp_path):
    """A file per moment, the raw one first: its clutter must not come in."""
    domain = feed(
        tmp_path,
        pattern=r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)_[a-z]+\.h5",
        join="cycle",
        time_format="%Y%m%dT%H%M%SZ",
    )
    raw = lambda file: [put(f"dataset{n}/data1/what", quantity=np.bytes_("TH"))(file) for n in (1, 2)]  # noqa: E731
    write(tmp_path / "west_20240601T030000Z_a.h5", edit=raw)
    write(tmp_path / "west_20240601T030000Z_b.h5")
    source = open_polar_source(domain)
    (ref,) = source.list(T0, T0)
    assert len(ref.members) == 2
    (tmp_path / "scratch").mkdir()
    assert [s.filtered for s in source.read(ref, tmp_path / "scratch").sweeps] == [True, True]


def test_bytes_behind_the_end_of_a_compressed_volume_cost_nothing(tmp_path):
    whole = gamic(tmp_path / "v.h5").read_bytes()
    packed, path = gzip.compress(whole), tmp_path / "v.gz"
    path.write_bytes(packed + b"oops" * 20)
    with plain_file(path, 2**26) as plain:
        assert plain.read_bytes() == whole
    for damaged in (packed[: len(packed) // 2], packed[:-6] + bytes(6)):
        path.write_bytes(damaged)
        with pytest.raises(BadInput), plain_file(path, 2**26):
            pass

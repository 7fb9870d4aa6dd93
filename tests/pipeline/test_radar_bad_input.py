"""Volumes that are damaged, strange or hostile: refused by name and with a reason, or used with the damage named."""

import bz2
import gc
import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from pyproj import Geod

from pipeline import times
from pipeline.domain import Quality
from pipeline.errors import BadInput
from pipeline.prepare import domain_grid, prepare
from pipeline.radar.decode import DecodeOptions, read_volume
from pipeline.radar.gridding import grid_volume
from pipeline.radar.quality import clean
from pipeline.radar.volume import NO_ECHO_DBZ, Site, Volume
from pipeline.source_settings import BlockedSector
from pipeline.sources import open_polar_source
from pipeline.sources.synthetic_radars import Scan, write_volume
from tests.conftest import NOW, PROJECT
from tests.pipeline.test_ingest_volumes import NETWORK, T0, feed, frame_rows, states, take_in

SITE = NETWORK.source.radars["west"]
NAME = f"west_{times.compact(T0)}.h5"
LATER = T0 + timedelta(seconds=20)


def scan(elevation=0.5, rays=360, gates=200, start=T0) -> Scan:
    """An echo of 30 dBZ in the east beyond 50 km, no echo elsewhere."""
    dbz = np.full((rays, gates), NO_ECHO_DBZ, np.float32)
    dbz[rays // 4 : rays // 4 + 20, 100:] = 30
    return Scan(elevation, start, dbz, np.full_like(dbz, 0.98))


def write(path: Path, *scans: Scan, edit=lambda file: None, site=SITE) -> Path:
    """An ODIM volume, of two sweeps unless others are given, after ``edit`` of its HDF5."""
    write_volume(path, "west", site, T0, scans or (scan(), scan(1.5, start=LATER)))
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def put(group: str, **attributes):
    """Edit: other attributes; None takes one out."""

    def edit(file):
        for name, value in attributes.items():
            file[group].attrs.pop(name, None) if value is None else file[group].attrs.update({name: value})

    return edit


def read(path: Path, **options) -> Volume:
    return read_volume(path, "west", T0, DecodeOptions(**options))


def said(path: Path, **options) -> str:
    """What a user is told: why the file is refused, with its name, or the defects of what can be used."""
    try:
        return "; ".join(read(path, **options).defects)
    except BadInput as error:
        assert str(error).startswith(path.name)
        return str(error)


def said_at_little_cost(path: Path, **options) -> str:
    said(path, **options)  # whatever is to be imported
    tracemalloc.start()
    try:
        text = said(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    return text


def blind(file):
    file["dataset1/data1/data"][200:240] = 255


@pytest.mark.parametrize(
    ("form", "gates", "edit"),
    [("cfradial1", 200, id), ("cfradial2", 200, id), ("cfradial1", 200, blind), ("cfradial1", 150, id)],
    ids=["1", "2", "1, a sector not measured", "1, a shorter sweep"],
)
def test_a_volume_exported_to_cfradial_comes_back(tmp_path, form, gates, edit):
    import xradar as xd

    source = write(tmp_path / "odim.h5", scan(), scan(1.5, gates=gates, start=LATER), edit=edit)
    export = {"cfradial1": xd.io.to_cfradial1, "cfradial2": xd.io.to_cfradial2}[form]
    export(xd.io.open_odim_datatree(str(source)), str(tmp_path / "cf.nc"))
    back = read(tmp_path / "cf.nc")
    assert back.site == Site(SITE.longitude, SITE.latitude, SITE.altitude_m) and len(back.sweeps) == 2
    for one, other in zip(read(source).sweeps, back.sweeps, strict=True):
        assert (one.elevation, one.range_m, one.gate_m) == (other.elevation, other.range_m, other.gate_m)
        assert abs(one.time - other.time) < timedelta(seconds=1) and np.allclose(one.azimuth, other.azimuth)
        reach = one.dbz.shape[1]
        assert np.array_equal(other.dbz[:, :reach], one.dbz, equal_nan=True)
        assert np.isnan(other.dbz[:, reach:]).all()  # filled up, not measured: not dry


def test_gamic(tmp_path):
    """0 is nothing, 1 to 255 are -31.5 to 95.5 dBZ; a sweep of nothing else is silent."""
    path, rays, fields = tmp_path / "v.mvol", np.arange(360), ("azimuth_start", "azimuth_stop")
    for code in (124, 0):
        with h5py.File(path, "w") as file:
            file.create_group("where").attrs.update(lon=5.0, lat=51.0, height=100.0)
            how = {"elevation": 0.5, "bin_count": 200, "range_step": 500.0, "range_samples": 1}
            file.create_group("scan0/how").attrs.update(how, timestamp=np.bytes_("2024-06-01T03:00:00Z"))
            file.create_group("scan0/what")
            kinds = [*((f, "f8") for f in (*fields, "elevation_start", "elevation_stop")), ("timestamp", "i8")]
            header = [(n, n + 1, 0.5, 0.5, int(T0.timestamp() * 1e6) + n * 50_000) for n in rays]
            file["scan0/ray_header"] = np.array(header, kinds)
            file["scan0/moment_0"] = np.where(scan().dbz > 0, code, 0).astype(np.uint8)
            about = {"dyn_range_min": np.float32(-31.5), "dyn_range_max": np.float32(95.5)}
            file["scan0/moment_0"].attrs.update(about, moment=np.bytes_("Zh"))
        volume = read(path)
        dbz = volume.sweeps[0].dbz
        assert np.array_equal(dbz, scan().dbz) if code else volume.is_silent
        assert volume.site == Site(5.0, 51.0, 100.0) and volume.sweeps[0].gate_m == 500


def rainbow(sample_data, path: Path, content_of) -> Path:
    """The sample in Rainbow with other contents of its blobs: even ones are data, odd ones angles."""
    data = (sample_data / "volumes/rainbow5/2013051000000600dBZ.vol").read_bytes()
    made = data[: data.index(b"<BLOB")]
    for mark in re.finditer(rb'<BLOB blobid="(\d+)" size="(\d+)" compression="qt">\n', data):
        old = zlib.decompress(data[mark.end() + 4 : mark.end() + int(mark[2])])
        new = content_of(int(mark[1]), old)
        packed = struct.pack(">I", len(new)) + zlib.compress(new)
        made += b'<BLOB blobid="%s" size="%d" compression="qt">\n' % (mark[1], len(packed)) + packed + b"\n</BLOB>\n"
    path.write_bytes(made)
    return path


def test_rainbow_with_nothing_but_code_0_is_silent_not_dry(sample_data, tmp_path):
    path = rainbow(sample_data, tmp_path / "v.vol", lambda n, old: bytes(len(old)) if len(old) > 5000 else old)
    assert read(path).is_silent


def rhi(file):
    last = max(name for name in file if name.startswith("dataset"))
    put(f"{last}/where", elangle=None, az_angle=45.0)(file)
    file.create_group(f"{last}/how").attrs["elangles"] = np.linspace(0.0, 60.0, 360)


@pytest.mark.parametrize(
    ("odd", "edit", "why"),
    [(scan(), rhi, "rhi"), (scan(90.0), id, "90.0 degrees"), (scan(1.5, rays=1), id, "1 rays of 200 gates")],
    ids=["height scan", "looks up", "single ray"],
)
def test_a_sweep_that_is_no_map_is_left_out_and_alone_refused(tmp_path, odd, edit, why):
    both = read(write(tmp_path / "both.h5", scan(), odd, edit=edit))
    assert [s.elevation for s in both.sweeps] == [0.5] and both.defects == ()
    assert why in said(write(tmp_path / "alone.h5", odd, edit=edit))


def named(quantity: str):
    return lambda file: [put(f"dataset{n}/data1/what", quantity=np.bytes_(quantity))(file) for n in (1, 2)]


@pytest.mark.parametrize(
    "name",
    [
        "DBZH", "DBZ", "DBZHC", "DBTH", "TH", "REF", "Z", "dBZ", "dBuZ",
        "reflectivity", "reflectivity_horizontal", "corrected_reflectivity",
    ],
)  # fmt: skip
def test_names_of_reflectivity(tmp_path, name):
    sweep = read(write(tmp_path / NAME, edit=named(name))).sweeps[0]
    assert sweep.dbz.max() == 30 and sweep.filtered == (name not in {"DBTH", "TH", "dBuZ"})


def test_a_moment_known_by_its_standard_name_only(tmp_path):
    import xradar as xd

    xd.io.to_cfradial1(xd.io.open_odim_datatree(str(write(tmp_path / NAME))), str(tmp_path / "cf.nc"))
    with h5py.File(tmp_path / "cf.nc", "r+") as file:
        file.move("DBZH", "moment_7")
        put("moment_7", standard_name=np.bytes_("equivalent_reflectivity_factor"))(file)
    assert read(tmp_path / "cf.nc").sweeps[0].dbz.max() == 30


def cut(file):
    """All but a third of a turn of one sweep; the other turns fully."""
    for data in ("dataset1/data1/data", "dataset1/data2/data"):
        rest = file[data][:120]
        del file[data]
        file[data] = rest
    put("dataset1/where", nrays=120)(file)
    file.create_group("dataset1/how").attrs.update(startazA=np.arange(120.0), stopazA=np.arange(120.0) + 1)


def declare(file):
    """Ten thousand million cells, none of them written."""
    for name in ("dataset2/data1", "dataset2/data2"):
        del file[name]["data"]
        file[name].create_dataset("data", (100_000, 100_000), "u1", chunks=(100, 100), compression="gzip")
    put("dataset2/where", nrays=100_000, nbins=100_000)(file)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        pytest.param(named("VRADH"), "no reflectivity moment among .*VRADH", id="no reflectivity"),
        pytest.param(cut, r"sweep 0 \(0.5 degrees\) has a hole", id="hole"),
        pytest.param(declare, "100000", id="10^10 cells"),
        pytest.param(put("dataset2/where", nbins=10**15), "nbins", id="10^15 gates"),
        pytest.param(put("dataset2/where", nbins=-5), "nbins", id="nbins -5"),
        pytest.param(put("dataset2/where", elangle=np.nan), "elangle|nan degrees", id="elangle nan"),
        pytest.param(put("dataset2/where", rscale=0.0), "rscale|gates", id="rscale 0"),
        pytest.param(put("dataset2/where", rscale=-500.0), "rscale|gates", id="rscale -500"),
        pytest.param(put("dataset2/data1/what", gain=0.0), "gain", id="gain 0"),
        pytest.param(put("dataset2/data1/what", gain=None), "gain", id="no gain"),
        pytest.param(put("dataset2/what", startdate=np.bytes_("garbage!")), "startdate|garbage", id="startdate"),
        pytest.param(lambda file: file.pop("dataset2/where"), "where", id="no where"),
    ],
)
def test_damage_inside_a_volume_is_named_and_costs_little(tmp_path, edit, names):
    assert re.search(names, said_at_little_cost(write(tmp_path / NAME, edit=edit)))


def damage(path: Path) -> Path:
    """Zeros in the middle of the packed reflectivity of the first sweep."""
    with h5py.File(path) as file:
        chunk = file["dataset1/data1/data"].id.get_chunk_info(0)
    data, middle = path.read_bytes(), chunk.byte_offset + chunk.size // 2
    path.write_bytes(data[:middle] + bytes(20) + data[middle + 20 :])
    return path


def test_a_damaged_sweep_is_a_defect_and_the_others_are_used(tmp_path):
    volume = read(damage(write(tmp_path / NAME)))
    assert [s.elevation for s in volume.sweeps] == [1.5] and "dataset1 is damaged inside" in volume.defects[0]


@pytest.mark.parametrize(
    "where",
    [{"lon": None}, {"lon": 0.0, "lat": 0.0}, {"lat": np.nan}, {"lon": 999.0}],
    ids=["missing", "0/0", "nan", "999"],
)
def test_a_radar_without_a_position_is_told_where_to_give_it(tmp_path, where):
    path = write(tmp_path / NAME, edit=put("where", **where))
    assert re.search("no position of the radar.* sites", said(path))
    assert read(path, site=Site(5.0, 51.0, 100.0)).site == Site(5.0, 51.0, 100.0)


def seen(path: Path, site=SITE, rays=360, gates=240, gate_m=500.0, elevation=0.5):
    """The cells in which a radar sees the same rain, 12 km around one place on the ground."""
    azimuth, distance = (np.arange(rays) + 0.5)[:, None] * 360 / rays, (np.arange(gates) + 0.5) * gate_m
    there, _, away = Geod(ellps="WGS84").inv(site.longitude, site.latitude, 4.9, 50.9)
    apart = away**2 + distance**2 - 2 * away * distance * np.cos(np.deg2rad(azimuth - there))
    made = replace(scan(elevation, rays, gates), dbz=np.where(apart < 12e3**2, 30, NO_ECHO_DBZ).astype(np.float32))
    volume = read(write(path, made, edit=put("dataset1/where", rscale=gate_m), site=site))
    return grid_volume(volume, domain_grid(NETWORK)).dbz[0] > 20


@pytest.mark.parametrize(
    "other",
    [
        {"elevation": 0.9}, {"gate_m": 250.0, "gates": 480}, {"gate_m": 1000.0, "gates": 120}, {"gates": 400},
        {"rays": 359}, {"rays": 361}, {"rays": 720}, {"site": SITE.model_copy(update={"latitude": 51.3})},
    ],
    ids=["elevation", "short gates", "long gates", "range", "359 rays", "361 rays", "720 rays", "site"],
)  # fmt: skip
def test_a_scan_that_changes_shows_the_same_rain_in_the_same_cells(tmp_path, other):
    before, after = seen(tmp_path / "before.h5"), seen(tmp_path / "after.h5", **other)
    assert before.sum() > 90 and (before & after).sum() > 0.9 * (before | after).sum()


def test_a_sweep_with_a_wrong_clock_does_not_shift_the_volume(tmp_path):
    domain = feed(tmp_path)
    write(tmp_path / NAME, *(scan(e, start=T0 + timedelta(hours=e == 2.4)) for e in (0.5, 1.5, 2.4, 3.6)))
    made = prepare(domain, open_polar_source(domain).list(T0, T0)[0], NOW, tmp_path)
    assert made.reason and (made.field is None or abs(made.field.time - T0) < timedelta(minutes=1))


def test_other_bytes_of_the_same_name_replace_the_frame(tmp_path, store, catalog):
    domain, path = feed(tmp_path / "in"), tmp_path / "in" / NAME
    write(path)
    take_in(domain, store, catalog)
    before = frame_rows(catalog)[T0]["sha256"]
    write(tmp_path / "new.h5", scan(rays=720), scan(1.5, rays=720)).replace(path)
    assert take_in(domain, store, catalog).framed == 1
    assert frame_rows(catalog)[T0]["sha256"] != before and states(catalog) == {NAME: "framed"}


def test_a_bad_file_that_is_overwritten_in_place_is_read_anew(tmp_path):
    """HDF5 shows what it knows of a file that is still open, so it must be closed, whenever memory is tidied up."""
    path = write(tmp_path / NAME, edit=put("dataset2/where", elangle=np.nan))
    other = write(tmp_path / "other.h5", scan(gates=300))
    gc.disable()
    try:
        said(path)
        path.write_bytes(other.read_bytes())
        assert read(path).sweeps[0].dbz.shape == (360, 300)
    finally:
        gc.enable()


def test_of_two_files_of_one_scan_the_whole_one_is_taken(tmp_path, store, catalog):
    domain = feed(tmp_path / "in", pattern=r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5(\.again)?")
    write(tmp_path / "in" / NAME)
    damage(write(tmp_path / "in" / f"{NAME}.again"))
    assert take_in(domain, store, catalog).partial == 1
    assert [i["key"] for i in json.loads(frame_rows(catalog)[T0]["inputs"])] == [NAME]


@pytest.mark.parametrize(
    ("names", "before"),
    [
        ([f"20260328-201500-{n}-I" for n in range(1, 13)], ""),
        ([f"{v}_20260328-20{v % 997:02d}00-00{n}-I" for v in (998, 999) for n in (1, 2)]
         + ["1_20260328-200600-001-S"], r"\d+_"),
    ],
    ids=["10 after 9", "volume 1 after 999"],
)  # fmt: skip
def test_chunks_go_by_number_and_volumes_by_time(tmp_path, names, before):
    pattern = before + r"(?P<time>\d{8}-\d{6})-(?P<chunk>\d+)-[SIE]"
    domain = feed(tmp_path, pattern=pattern, time_format="%Y%m%d-%H%M%S", join="chunks")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    refs = open_polar_source(domain).list(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert [name for ref in refs for name in ref.members] == names


@pytest.mark.parametrize("form", ["hdf5", "nexrad", "rainbow"])
def test_a_bomb_inside_a_format_is_not_unpacked(request, tmp_path, form):
    path = tmp_path / "bomb"
    if form == "hdf5":
        write(path, *(scan(n, gates=2000) for n in range(10)))
    elif form == "nexrad":
        record = bz2.compress(bytes(64 * 2**20))
        path.write_bytes(b"AR2V0006.001".ljust(24, b"\0") + struct.pack(">i", len(record)) + record)
    else:
        content_of = lambda n, old: bytes(64 * 2**20) if n == 1 else old  # noqa: E731
        rainbow(request.getfixturevalue("sample_data"), path, content_of)
    assert "when decompressed" in said_at_little_cost(path, max_bytes=2**20)


def test_rainbow_that_declares_more_gates_than_it_holds(sample_data, tmp_path):
    path = rainbow(sample_data, tmp_path / "v.vol", lambda n, old: old)
    path.write_bytes(path.read_bytes().replace(b'bins="400"', b'bins="4000000000"'))
    assert "4000000000" in said_at_little_cost(path)


ENTITIES = b"".join(b'<!ENTITY %c "%s">' % (n + 1, b"&%c;" % n * 10) for n in range(97, 106))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"dBZ of today: 30, 31, 17\n", id="text"),
        pytest.param(b"\x1b\x00", id="iris 2 bytes"),
        pytest.param(b"\x1b\x00" + bytes(98), id="iris 100 bytes"),
        pytest.param(b"CDF\x01\0\0", id="netcdf"),
        pytest.param(b"ARCHIVE2.", id="nexrad"),
        pytest.param(b"<volume>\n", id="rainbow"),
        pytest.param(b'<volume><!DOCTYPE v [<!ENTITY a "aa">%s]>&j;</volume>\n<!-- END XML -->\n' % ENTITIES, id="xml"),
        pytest.param(b'<!DOCTYPE v [<!ENTITY a "aa">%s]><volume>&j;</volume>' % ENTITIES, id="xml entities"),
    ],
)
def test_what_only_begins_like_a_volume_is_refused(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    assert NAME in said_at_little_cost(tmp_path / NAME)


def test_a_folder_with_the_name_of_a_volume_is_left_alone(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    (tmp_path / "in" / NAME.replace("west", "east")).mkdir()
    write(tmp_path / "in" / NAME)
    assert take_in(domain, store, catalog).framed == 1 and states(catalog) == {NAME: "framed"}


def test_a_damaged_file_whose_time_is_in_its_header_is_not_passed_over(tmp_path, store, catalog):
    domain = feed(tmp_path / "in", pattern=r"(?P<radar>[a-z]+)\.h5")
    path = write(tmp_path / "in" / "west.h5")
    path.write_bytes(path.read_bytes()[:5000])
    os.utime(path, (T0.timestamp(), T0.timestamp()))
    assert "west.h5" in str(take_in(domain, store, catalog).quarantined)


def test_a_file_that_is_no_three_scans_is_not_cut_in_three(tmp_path):
    path = write(tmp_path / NAME, *(scan(e) for e in (0.5, 1.5, 2.4, 3.6, 5.5, 8.5)))
    assert len(read(path, part=(0, 3)).sweeps) == 2
    with pytest.raises(BadInput, match="no low sweep in part 2"):
        read(path, part=(1, 3))


def test_a_chunk_that_was_cut_off_costs_its_radials_only(sample_data, tmp_path, store, catalog):
    import tarfile

    with tarfile.open(sample_data / "volumes/nexrad_level2/nexrad_level2_chunks_KLOT.tar.gz") as tar:
        pieces = {m.name.rpartition("/")[2]: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    names = sorted(pieces)[:12]
    (tmp_path / "v").write_bytes(b"".join(pieces[n][: -100 if n == names[4] else None] for n in names))
    assert "hole of 61 degrees" in "; ".join(read(tmp_path / "v").defects)


def test_a_process_that_read_odim_ends_well(tmp_path):
    """HDF5 closes what is still open when Python is gone already."""
    write(tmp_path / NAME, edit=put("where", lon=None))
    write(tmp_path / "good.h5")
    script = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from pipeline.radar.decode import read_volume; from pipeline.errors import BadInput\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_volume(Path(path), 'r', datetime.now(UTC))\n"
        "    except BadInput: print('refused')\n"
        "import h5py; print(len(h5py.h5f.get_obj_ids(types=h5py.h5f.OBJ_FILE)))"
    )
    paths = [str(tmp_path / NAME), str(tmp_path / "good.h5")]
    done = subprocess.run([sys.executable, "-c", script, *paths], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "0"]), done.stderr


@pytest.mark.parametrize(
    ("azimuths", "hidden"), [((0, 360), 360), ((350, 10), 20), ((10, 350), 340)], ids=["all", "over north", "most"]
)
def test_how_wide_a_blocked_sector_is(tmp_path, azimuths, hidden):
    volume = read(write(tmp_path / NAME, scan()))
    sector = BlockedSector(azimuths=azimuths, below_elevation=1.0)
    cleaned, _ = clean(volume, Quality(), (sector,))
    assert np.isnan(cleaned.sweeps[0].dbz).all(axis=1).sum() == hidden
    with pytest.raises(ValidationError, match="all round"):
        BlockedSector(azimuths=(10, 10), below_elevation=1.0)

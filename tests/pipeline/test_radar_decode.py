"""Every real volume decodes, and no echo, no measurement and damage are told apart in every format."""

import gzip
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.radar.decode import DecodeOptions, read_volume, without_silent_sweeps
from pipeline.radar.volume import NO_ECHO_DBZ, Site

NOMINAL = datetime(2024, 6, 1, tzinfo=UTC)
KLIX = Site(-89.825, 30.337, 7.0)

# file: sweeps, first elevation, rays and gates, time of the first sweep, highest dBZ in it
REAL = {
    "nexrad_level2/KLBB20160601_150025_V06": (11, 0.5, (720, 1832), "2016-06-01T15:00:41", 59.5),
    "nexrad_level2/KLIX20050828_180149.gz": (14, 0.4, (367, 460), "2005-08-28T18:01:39", 54.0),
    "odim_h5/40_20181220_060630.pvol.h5": (14, 0.5, (360, 598), "2018-12-20T06:06:30", 69.0),
    "odim_h5/IDR66_20141206_094829.vol.h5": (14, 0.5, (360, 600), "2014-12-06T09:48:45", 58.5),
    "odim_h5/behel.pvol.hdf": (12, 0.3, (360, 800), "2019-06-06T00:04:18", 62.0),
    "odim_h5/knmi_polar_volume.h5": (14, 0.3, (360, 320), "2011-06-10T11:40:12", 66.5),
    "odim_h5/T_PAGZ35_C_ENMI_20170421090837.hdf": (6, 0.5, (720, 960), "2017-04-21T09:08:07", 51.0),
    "odim_h5/sehem_pvol_pn215_20190907T081000Z_0x81540b.h5": (3, 0.5, (360, 480), "2019-09-07T08:10:13", 64.0),
    "odim_h5/scan_sehuv_0.5_20110126T184500Z.h5": (1, 0.5, (420, 120), "2011-01-26T18:45:35", 31.6),
    "cfradial1/MLL2217907250U.003.nc": (1, 1.0, (360, 492), "2022-06-28T07:21:36", 66.5),
    "cfradial1/example_cfradial_ppi.nc": (1, 0.5, (40, 42), "2011-05-20T10:54:23", 50.2),
    "iris_sigmet/SUR210819000227.RAWKPJV": (1, 0.5, (359, 833), "2021-08-19T00:02:39", 46.2),
    "iris_sigmet/cor-main131125105503.RAW2049": (10, 0.5, (360, 664), "2013-11-25T10:55:16", 56.5),
    "rainbow5/2013051000000600dBZ.vol": (14, 0.6, (361, 400), "2013-05-10T00:00:11", 48.0),
}


def read(path: Path, **options):
    return read_volume(path, "here", NOMINAL, DecodeOptions(**options))


@pytest.mark.parametrize("file", REAL)
def test_every_make_of_volume(sample_data, file):
    count, elevation, shape, time, highest = REAL[file]
    volume = read(sample_data / "volumes" / file, site=KLIX if "KLIX" in file else None)
    first = volume.sweeps[0]
    assert (len(volume.sweeps), round(first.elevation, 1), first.dbz.shape) == (count, elevation, shape)
    assert abs((first.time - datetime.fromisoformat(f"{time}+00:00")).total_seconds()) <= 1
    assert np.nanmax(first.dbz) == pytest.approx(highest, abs=0.06)
    assert (np.diff(first.azimuth) >= 0).all() and volume.defects == ()
    for sweep in volume.sweeps:
        assert np.nanmin(sweep.dbz) >= NO_ECHO_DBZ and np.nanmax(sweep.dbz) <= 80


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("volumes/odim_h5/belgium.comp.hdf", "ODIM object 'COMP'"),
        ("volumes/odim_h5/CORRUPT_sekkr_scan_0.5_pn282_20180405T102500Z_0x9.h5", "the radar was malfunctioning"),
        ("volumes/nexrad_level2/nexrad_level2_chunks_KLOT.tar.gz", "begins with"),
        ("volumes/nexrad_level2/KLIX20050828_180149.gz", "no position of the radar"),
        ("knmi_nl25_20100826/RAD_NL25_RAP_5min_201008260105.h5", "expected ODIM_H5, GAMIC or CfRadial"),
        ("mch_aqc_20160711/AQC161932045V_00005.801.gif", "begins with b'GIF"),
    ],
)
def test_what_cannot_be_used_says_what_was_found(sample_data, file, said):
    with pytest.raises(BadInput, match=said) as error:
        read(sample_data / file)
    assert Path(file).name in str(error.value)


def test_codes_of_nexrad(sample_data):
    import xradar as xd

    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    field = xd.io.open_nexradlevel2_datatree(str(path))["sweep_1"]["DBZH"].values
    dbz = read(path).sweeps[1].dbz
    assert (dbz[field == -33.0] == NO_ECHO_DBZ).all() and (field == -33.0).any()
    assert np.isnan(dbz[field == -32.5]).all() and (field == -32.5).any()  # range-folded: not measured
    assert (dbz[field > -32.4] == field[field > -32.4].astype(np.float32)).all()


def test_codes_of_odim(sample_data, tmp_path):
    path = sample_data / "volumes/odim_h5/behel.pvol.hdf"
    with h5py.File(path) as file:
        raw = file["dataset1/data1/data"][:]
        assert file["dataset1/where"].attrs["elangle"] == pytest.approx(0.3)
    lowest = read(path).sweeps[0].dbz
    assert ((lowest == NO_ECHO_DBZ) == (raw == 0)).all() and not np.isnan(lowest).any()
    # one code for both, as the Australian files have it: inside the range nothing is no echo
    both = read(sample_data / "volumes/odim_h5/40_20181220_060630.pvol.h5").sweeps[0].dbz
    assert not np.isnan(both).any() and 0.8 < (both == NO_ECHO_DBZ).mean() < 0.9
    avesnes = read(sample_data / "mf_avesnes_20230420/T_PAZE63_C_LFPW_20230420065446.h5").sweeps[0].dbz
    with h5py.File(sample_data / "mf_avesnes_20230420/T_PAZE63_C_LFPW_20230420065446.h5") as file:
        groups = [file[f"dataset1/{n}"] for n in file["dataset1"] if n.startswith("data")]
        raw = next(g["data"][:] for g in groups if g["what"].attrs["quantity"] in (b"DBZH", "DBZH"))
    assert (np.isnan(avesnes) == (raw == 255)).all() and (raw == 255).any()


def silent(sample_data, tmp_path, code: int) -> Path:
    """A volume in which every gate has one code."""
    path = tmp_path / "silent.h5"
    path.write_bytes((sample_data / "volumes/odim_h5/behel.pvol.hdf").read_bytes())
    with h5py.File(path, "r+") as file:
        for name in file:
            if name.startswith("dataset"):
                file[name]["data1/data"][...] = code
    return path


def test_a_silent_radar_and_a_dry_one(sample_data, tmp_path):
    assert all(np.isnan(s.dbz).all() for s in read(silent(sample_data, tmp_path, 255)).sweeps)
    assert all((s.dbz == NO_ECHO_DBZ).all() for s in read(silent(sample_data, tmp_path, 0)).sweeps)


def test_an_australian_radar_that_is_silent_is_not_dry(sample_data, tmp_path):
    """Its files have one code for no echo and no data: a sweep of it is dry if no beam above saw an echo."""
    path = tmp_path / "v.h5"
    path.write_bytes((sample_data / "volumes/odim_h5/IDR66_20141206_094829.vol.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/data"][...] = 0
    dry_below = read(path)
    assert not dry_below.is_silent and "0.5 degrees measured nothing" in str(without_silent_sweeps(dry_below).defects)
    with h5py.File(path, "r+") as file:
        for name in [n for n in file if n.startswith("dataset")]:
            file[name]["data1/data"][...] = 0
    assert read(path).is_silent


def chunks(sample_data) -> list[bytes]:
    with tarfile.open(sample_data / "volumes/nexrad_level2/nexrad_level2_chunks_KLOT.tar.gz") as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)
        return [tar.extractfile(m).read() for m in members]


@pytest.mark.parametrize(
    ("pick", "sweeps", "said"),
    [
        (lambda c: c, 12, ""),
        (lambda c: c[:5] + c[6:], 12, "hole of 61 degrees"),
        (lambda c: c[:20], 3, "3 of 12 sweeps"),
    ],
    ids=["whole", "a middle chunk is missing", "the end is missing"],
)
def test_chunks_of_nexrad(sample_data, tmp_path, pick, sweeps, said):
    path = tmp_path / "KLOT"
    path.write_bytes(b"".join(pick(chunks(sample_data))))
    volume = read(path)
    assert len(volume.sweeps) == sweeps
    assert said in "; ".join(volume.defects) and bool(volume.defects) == bool(said)


def test_chunks_in_wrong_order_or_without_the_first(sample_data, tmp_path):
    parts = chunks(sample_data)
    for name, data in (("shuffled", parts[:1] + parts[:0:-1]), ("headless", parts[1:])):
        (tmp_path / name).write_bytes(b"".join(data))
        with pytest.raises(BadInput, match=name):
            read(tmp_path / name)


def test_a_truncated_archive_file_is_said_to_be_a_part(sample_data, tmp_path):
    data = (sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06").read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(data[: int(0.95 * len(data))])
    volume = read(path)
    assert len(volume.sweeps) == 9 and "9 of 11 sweeps" in volume.defects[0]
    path.write_bytes(data[: len(data) // 5])
    with pytest.raises(BadInput, match="holds no sweep"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"x" * 100, b"\x1f\x8b\x08broken", b"AR2V0006.001"])
def test_damaged_bytes(tmp_path, content):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        read(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(4 * 2**20)))
    with pytest.raises(BadInput, match="when decompressed"):
        read(path, max_bytes=2**20)


def test_declared_sizes_are_checked_before_anything_is_read(sample_data, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.radar.decode.MAX_CELLS", 100_000)
    with pytest.raises(BadInput, match="360 rays of 800 gates"):
        read(sample_data / "volumes/odim_h5/behel.pvol.hdf")


def test_vertical_sweeps_are_left_out_and_unreliable_times_replaced(sample_data):
    path = sample_data / "mf_montancy_20210114/PAG_67_data_720-256-1000m_202101141015.nc"
    volume = read(path, reliable_times=False)
    assert len(volume.sweeps) == 17 and max(s.elevation for s in volume.sweeps) < 10
    assert {s.time for s in volume.sweeps} == {NOMINAL}
    assert not any(s.filtered for s in volume.sweeps)  # TH only

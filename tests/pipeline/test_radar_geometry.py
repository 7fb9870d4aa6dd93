"""Echo lies where it was measured: checks that need no other reader, on the real files of every format, and Py-ART."""

import struct
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.radar.decode import DecodeOptions, read_volume
from pipeline.radar.formats import opened, plain_file
from pipeline.radar.iris import mended_reader
from pipeline.radar.nexrad import whole_part
from pipeline.radar.recognise import sniff
from tests.pipeline.test_radar_decode import KLIX, NOMINAL, REAL, chunks

IRIS = ("SUR210819000227.RAWKPJV", "cor-main131125105503.RAW2049")
MOMENTS = ("DBZH", "TH", "DBTH", "VRADH", "ZDR", "RHOHV", "PHIDP", "SQIH")


def echo(field) -> np.ndarray:
    """Where a moment has more than its most frequent value, which stands for nothing: (rays, gates)."""
    values = np.nan_to_num(np.asarray(field.values, np.float32), nan=-1e6)
    kinds, counts = np.unique(np.round(values, 2), return_counts=True)
    return np.abs(values - kinds[counts.argmax()]) > 0.02


def shift_between(one: np.ndarray, other: np.ndarray) -> int:
    """By how many rays the edges of echo of two moments are apart: where most of their gates agree."""
    return max(range(-3, 4), key=lambda n: (float((one == np.roll(other, n, axis=0)).mean()), -abs(n)))


@pytest.mark.parametrize("file", [f for f in REAL if f.split("/")[0] in ("nexrad_level2", "odim_h5", "iris_sigmet")])
def test_moments_of_a_sweep_agree_in_their_edges_of_echo(sample_data, file):
    path = sample_data / "volumes" / file
    compared = 0
    with plain_file(path, 2**29) as plain, whole(plain, path.name) as sound, opened(sound, kind_of(plain)) as tree:
        for key in [key for key in tree.children if key.startswith("sweep")][:2]:
            data = tree[key].to_dataset()
            azimuth = data["azimuth"].values
            assert (np.diff(azimuth) >= 0).all() and azimuth.min() >= 0 and azimuth.max() <= 360
            fields = []
            for name in [name for name in MOMENTS if name in data and data[name].ndim == 2]:
                with suppress(OSError):  # packed in a way that HDF5 here does not know
                    fields.append(echo(data[name]))
            for other in fields[1:]:
                if other.shape == fields[0].shape and min(other.mean(), fields[0].mean()) > 0.01:
                    compared += 1
                    assert shift_between(fields[0], other) == 0, key
    several = any(part in file for part in ("KLBB", "iris", "40_2018", "sehem"))
    assert compared or not several


def kind_of(path: Path) -> str:
    return sniff(path, path.name).kind


@contextmanager
def whole(path: Path, name: str):
    if kind_of(path) == "nexrad":
        with whole_part(path, name, 2**29) as part:
            yield part.path
    else:
        yield path


@pytest.mark.parametrize("file", REAL)
def test_a_radar_lies_on_earth_and_its_gates_behind_each_other(sample_data, file):
    volume = read_volume(sample_data / "volumes" / file, "x", NOMINAL, DecodeOptions(KLIX if "KLIX" in file else None))
    site = volume.site
    assert -180 <= site.longitude <= 180 and -90 <= site.latitude <= 90 and -100 <= site.altitude <= 5000
    for sweep in volume.sweeps:
        assert -sweep.gate_m <= sweep.range_m <= 10_000 and 10 <= sweep.gate_m <= 5000
        assert 10e3 <= sweep.reach_m <= 600e3 and (np.diff(sweep.azimuth) >= 0).all()


def rays_of_iris(path: Path, moment: int, moments: int) -> dict[float, np.ndarray]:
    """The first sweep of a RAW file by its records: azimuth of the middle of each ray, and the codes of a moment."""
    data = np.fromfile(path, np.uint8)
    records = data[: len(data) // 6144 * 6144].reshape(-1, 6144)
    sweep = [record for record in records[2:] if int.from_bytes(record[2:4].tobytes(), "little") == 1]
    headers = 12 + 76 * moments
    words = np.concatenate([sweep[0][headers:], *(record[12:] for record in sweep[1:])]).view("<u2").tolist()
    rays, position, number = {}, 0, 0
    while position < len(words):
        row: list[int] = []
        while position < len(words) and (code := words[position]) != 1:
            size = code & 0x7FFF
            row += words[position + 1 : position + 1 + size] if code & 0x8000 else [0] * size
            position += 1 + (size if code & 0x8000 else 0)
        position += 1
        if len(row) > 6 and number % moments == moment:
            start, stop = row[0] * 360 / 65536, row[2] * 360 / 65536
            rays[round((start + (stop - start) % 360 / 2) % 360, 3)] = np.array(row[6:], "<u2")
        number += 1
    return rays


@pytest.mark.parametrize("file", IRIS)
def test_iris_rays_lie_where_their_own_headers_say(sample_data, file):
    path = sample_data / "volumes/iris_sigmet" / file
    with opened(path, "iris") as tree:
        data = tree["sweep_0"].to_dataset().load()
    # the number of DBZH in the file, how many moments there are, and the codes of a reflectivity in dBZ
    place, moments, code, of_code = (2, 12, "<u2", (-327.68, 0.01)) if "SUR" in file else (0, 7, "u1", (-32.0, 0.5))
    rays = rays_of_iris(path, place, moments)
    agreed = compared = 0
    for azimuth, values in zip(data["azimuth"].values, data["DBZH"].values, strict=True):
        codes = rays[min(rays, key=lambda ray, here=azimuth: abs(ray - here))].view(code)[: len(values)]
        there = codes > 0
        compared += int(there.sum())
        agreed += int(np.isclose(of_code[0] + of_code[1] * codes, values[: len(codes)], atol=0.006)[there].sum())
    assert compared > 10_000 and agreed > 0.99 * compared


@pytest.mark.parametrize("file", IRIS)
def test_iris_as_py_art_reads_it(sample_data, file):
    pyart = pytest.importorskip("pyart", reason="Py-ART, the other reader of IRIS, is not installed")
    path = sample_data / "volumes/iris_sigmet" / file
    radar = pyart.io.read_sigmet(str(path))
    rays = radar.get_slice(0)
    order = np.argsort(radar.azimuth["data"][rays])
    with opened(path, "iris") as tree:
        data = tree["sweep_0"].to_dataset().load()
    assert np.allclose(data["azimuth"], radar.azimuth["data"][rays][order], atol=0.01)
    for ours, theirs in (("DBZH", "reflectivity"), ("VRADH", "velocity"), ("RHOHV", "cross_correlation_ratio")):
        values = radar.fields[theirs]["data"][rays][order].filled(np.nan)
        there = np.isfinite(values)
        assert np.allclose(data[ours].values[there], values[there], atol=0.01), ours


def test_whether_xradar_still_turns_iris_by_a_ray(sample_data):
    """When this fails xradar is mended: remove ``pipeline.radar.iris`` but for what it does with files cut off."""
    import xradar as xd

    path = str(sample_data / "volumes/iris_sigmet" / IRIS[1])
    of_library = xd.io.open_iris_datatree(path)["sweep_0"].to_dataset().load()
    with mended_reader():
        mended = xd.io.open_iris_datatree(path)["sweep_0"].to_dataset().load()
    assert not np.array_equal(of_library["VRADH"], mended["VRADH"], equal_nan=True)
    assert np.array_equal(of_library["azimuth"], mended["azimuth"])


def test_southern_latitudes_of_iris(sample_data, tmp_path):
    data = bytearray((sample_data / "volumes/iris_sigmet" / IRIS[1]).read_bytes())
    at = 6144 + 12 + 168  # of the ingest configuration, in the second record: latitude and longitude as parts of a turn
    for latitude, longitude in ((-34.5, 150.25), (-0.5, -60.0), (51.0, 179.9)):
        codes = [round(value % 360 / 360 * 2**32) for value in (latitude, longitude)]
        struct.pack_into("<II", data, at, *codes)
        (tmp_path / "v").write_bytes(data)
        site = read_volume(tmp_path / "v", "x", NOMINAL).site
        assert (site.latitude, site.longitude) == pytest.approx((latitude, longitude), abs=1e-6)


def test_iris_that_is_cut_off_gives_its_whole_sweeps(sample_data, tmp_path):
    data = (sample_data / "volumes/iris_sigmet" / IRIS[1]).read_bytes()
    (tmp_path / "v").write_bytes(data[: len(data) * 6 // 10])
    volume = read_volume(tmp_path / "v", "x", NOMINAL)
    whole = read_volume(sample_data / "volumes/iris_sigmet" / IRIS[1], "x", NOMINAL)
    assert 2 <= len(volume.sweeps) < 10 and f"{len(volume.sweeps)} of 10 sweeps" in "; ".join(volume.defects)
    for sweep, other in zip(volume.sweeps, whole.sweeps, strict=False):
        assert np.array_equal(sweep.dbz, other.dbz, equal_nan=True)


def agree(part, whole) -> None:
    """Rays that are there are those of the whole volume."""
    for sweep in part.sweeps:
        others = [
            o for o in whole.sweeps if o.dbz.shape[1] == sweep.dbz.shape[1] and abs(o.time - sweep.time).seconds < 20
        ]
        assert any(
            all(
                np.array_equal(ray, other.dbz[np.abs(other.azimuth - azimuth).argmin()], equal_nan=True)
                for azimuth, ray in zip(sweep.azimuth[::40], sweep.dbz[::40], strict=True)
            )
            for other in others
        )


@pytest.mark.parametrize("lost", [2, 6, 7, 13])
def test_a_lost_piece_of_nexrad_moves_no_ray(sample_data, tmp_path, lost):
    parts = chunks(sample_data)
    (tmp_path / "whole").write_bytes(b"".join(parts))
    (tmp_path / "part").write_bytes(b"".join(parts[:lost] + parts[lost + 1 :]))
    part, whole = (read_volume(tmp_path / name, "x", NOMINAL) for name in ("part", "whole"))
    assert len(part.sweeps) >= 11 and part.defects
    agree(part, whole)


def test_bytes_behind_the_end_of_nexrad_and_a_bad_record_cost_only_themselves(sample_data, tmp_path):
    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    data, plain = path.read_bytes(), read_volume(path, "x", NOMINAL)
    (tmp_path / "v").write_bytes(data + b"HTTP/1.1 200 OK\r\n" * 300)
    behind = read_volume(tmp_path / "v", "x", NOMINAL)
    assert len(behind.sweeps) == 11 and "bytes behind the end" in str(behind.defects)
    assert all(np.array_equal(a.dbz, b.dbz, equal_nan=True) for a, b in zip(behind.sweeps, plain.sweeps, strict=True))
    starts = [n for n in range(len(data)) if data.startswith(b"1AY&SY", n)]
    for record in (0, 5):
        spoilt = bytearray(data)
        spoilt[starts[record] + 3000 : starts[record] + 3100] = bytes(100)
        (tmp_path / "v").write_bytes(spoilt)
        volume = read_volume(tmp_path / "v", "x", NOMINAL)
        assert len(volume.sweeps) == 11 and "records are damaged" in str(volume.defects)
        agree(volume, plain)


def test_bytes_behind_and_inside_a_plain_nexrad_volume(sample_data, tmp_path):
    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    with whole_part(path, path.name, 2**29) as part:
        data = bytearray(part.path.read_bytes())
    plain = read_volume(path, "x", NOMINAL)
    radials = [n for n in range(24 + 134 * 2432, 3_000_000) if data.startswith(b"KLBB", n)]
    data[radials[100] - 28 : radials[100]] = b"\xff" * 28  # one bad header
    (tmp_path / "v").write_bytes(data + b"\xee" * 5000)
    volume = read_volume(tmp_path / "v", "x", NOMINAL)
    assert len(volume.sweeps) == 11 and "no whole radials" in str(volume.defects)
    assert volume.sweeps[0].dbz.shape[0] == 719
    agree(volume, plain)

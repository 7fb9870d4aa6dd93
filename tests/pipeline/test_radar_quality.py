"""What quality control takes out of a sweep, and that it leaves rain alone."""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.domain import Quality
from pipeline.radar.decode import read_volume
from pipeline.radar.quality import clean, gabella
from pipeline.radar.volume import NO_ECHO_DBZ, Site, Sweep, Volume

T0 = datetime(2024, 6, 1, tzinfo=UTC)
OFF = Quality(min_rhohv=0, min_fluctuation_db=0, ground_echo=False, min_echo_gates=0)


def sweep(dbz: np.ndarray, rhohv: np.ndarray | None = None) -> Sweep:
    azimuth = (np.arange(len(dbz), dtype=np.float32) + 0.5) * 360 / len(dbz)
    return Sweep(0.5, azimuth, 250.0, 500.0, dbz, rhohv, None, True, False, T0)


def cleaned(one: Sweep, **switches) -> tuple[np.ndarray, dict[str, float]]:
    volume, removed = clean(Volume("here", Site(5, 51, 0), (one,)), OFF.model_copy(update=switches))
    return volume.sweeps[0].dbz, removed


def rain() -> np.ndarray:
    """A smooth shower of 60 x 80 gates on a dry sweep."""
    dbz = np.full((360, 200), NO_ECHO_DBZ, np.float32)
    dbz[100:160, 60:140] = 20 + 15 * np.outer(np.hanning(60), np.hanning(80))
    return dbz


def test_everything_off_changes_nothing():
    dbz = rain()
    out, removed = cleaned(sweep(dbz))
    assert np.array_equal(out, dbz) and removed == {}


def test_low_correlation_goes_strong_or_unknown_echo_stays():
    dbz = rain()
    dbz[300:330, 60:140] = 0.0  # faint echo, which tells where the noise is; its correlation says nothing
    rho = np.full(dbz.shape, 0.98, np.float32)
    rho[100:110], rho[110:120], rho[300:330] = 0.5, np.nan, 0.5
    dbz[105, 100], rho[105, 100] = 45.0, 0.7  # hail
    dbz[20, 100], rho[20, 100] = 45.0, 0.5  # ground
    out, removed = cleaned(sweep(dbz, rho), min_rhohv=0.8)
    assert np.isnan(out[102, 60:140]).all() and not np.isnan(out[110:160]).any()
    assert (out[300:330, 60:140] == 0).all()
    assert out[105, 100] == 45.0 and np.isnan(out[20, 100]) and out[0, 0] == NO_ECHO_DBZ
    assert removed == {"low correlation": pytest.approx(10 * 80 / (60 * 80 + 30 * 80 + 1))}


def test_specks_go_and_an_echo_across_north_is_one():
    dbz = rain()
    dbz[20, 30] = 30.0
    dbz[[358, 359, 0, 1], 50:53] = 30.0  # 12 gates, joined over north
    out, _ = cleaned(sweep(dbz), min_echo_gates=10)
    assert np.isnan(out[20, 30]) and out[0, 50] == 30.0 and np.isnan(out).sum() == 1


def test_ground_echo_goes_and_rain_stays():
    dbz = rain()
    rng = np.random.default_rng(3)
    clutter = rng.random((30, 40)) < 0.3
    dbz[200:230, 10:50][clutter] = 45.0
    out, removed = cleaned(sweep(dbz), ground_echo=True)
    assert np.isnan(out[200:230, 10:50][clutter]).mean() > 0.95
    assert np.isnan(out[100:160, 60:140]).mean() < 0.01
    assert removed["ground echo"] > 0.05


def test_ground_echo_is_not_looked_for_where_correlation_is_known_or_the_beam_is_high():
    dbz = rain()
    dbz[200, 20] = dbz[200, 195] = 60.0
    out, _ = cleaned(dataclasses.replace(sweep(dbz), elevation=4.0), ground_echo=True)
    assert np.isnan(out[200, 20]) and out[200, 195] == 60.0  # 98 km at 4 degrees: 7 km high
    known = sweep(dbz, np.full(dbz.shape, 0.99, np.float32))
    assert cleaned(known, ground_echo=True)[0][200, 20] == 60.0


def test_still_echo_goes_amid_rain():
    dbz = rain()
    fluctuation = np.full(dbz.shape, 5.0, np.float32)
    fluctuation[120, 100], fluctuation[130, 100] = 0.6, np.nan
    out, removed = cleaned(dataclasses.replace(sweep(dbz), fluctuation=fluctuation), min_fluctuation_db=2.5)
    assert np.isnan(out[120, 100]) and np.isnan(out).sum() == 1 and "still echo" in removed


def test_the_mountains_around_montancy_go(sample_data):
    path = sample_data / "mf_montancy_20210114/PAG_67_data_720-256-1000m_202101141100.nc"
    volume = read_volume(path, "montancy", T0)
    low = min(range(len(volume.sweeps)), key=lambda n: volume.sweeps[n].elevation)
    before, after = volume.sweeps[low].dbz, clean(volume, Quality())[0].sweeps[low].dbz
    assert (before > 40).sum() > 3000 and (after > 40).sum() < 0.05 * (before > 40).sum()
    rain_there = (before > 10) & (before < 25)
    assert np.isnan(after[rain_there]).mean() < 0.12


def test_gabella_as_wradlib_has_it(sample_data):
    classify = pytest.importorskip("wradlib.classify", reason="comparison package; `make test` installs it")
    volume = read_volume(sample_data / "volumes/odim_h5/behel.pvol.hdf", "behel", T0)
    for one in volume.sweeps[:3]:
        theirs = classify.filter_gabella(one.dbz, wsize=5, thrsnorain=0.0, tr1=6.0, n_p=6, tr2=1.3)
        ours = gabella(one.dbz)
        assert (ours == np.asarray(theirs, bool)).mean() > 0.985


def test_real_rain_is_kept_and_real_clutter_goes(sample_data):
    wet = read_volume(sample_data / "volumes/odim_h5/behel.pvol.hdf", "behel", T0)
    dry = read_volume(next((sample_data / "rmi_behel_scanz_20200207").glob("*.hdf")), "behel", T0)
    kept = {}
    for name, volume in (("wet", wet), ("dry", dry)):
        before = sum((s.dbz > 15).sum() for s in volume.sweeps[:3])
        after = sum((s.dbz > 15).sum() for s in clean(volume, Quality())[0].sweeps[:3])
        kept[name] = after / before
    assert kept["wet"] > 0.98 and kept["dry"] < 0.85

"""Where the ground is known to echo: maps from dry volumes, sectors behind obstacles."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.domain import Quality
from pipeline.errors import NowcastError, StoreUnavailable
from pipeline.grids import centred_grid
from pipeline.learn_clutter import learn_clutter
from pipeline.radar.clutter import ClutterMap, map_path, read_map, write_map
from pipeline.radar.decode import read_volume
from pipeline.radar.gridding import Level, grid_volume
from pipeline.radar.quality import clean
from pipeline.radar.volume import NO_ECHO_DBZ, Site, Sweep, Volume
from pipeline.source_settings import BlockedSector
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.test_ingest_volumes import GRID

TIME = datetime(2020, 2, 7, 13, tzinfo=UTC)


def volume(echo=np.s_[:0], dbz=30.0, elevation=0.5, gates=400) -> Volume:
    """360 rays of ``gates`` half kilometres; ``echo`` names the gates that have one."""
    field = np.full((360, gates), NO_ECHO_DBZ, np.float32)
    field[echo] = dbz
    azimuth = np.arange(360, dtype=np.float32) + 0.5
    sweep = Sweep(elevation, azimuth, 250.0, 500.0, field, None, None, True, False, TIME)
    return Volume("r", Site(5.0, 51.0, 100.0), (sweep,))


HILL = np.s_[90:95, 60:66]
ONLY_MAP = Quality(min_rhohv=0, min_fluctuation_db=0, ground_echo=False, min_echo_gates=0)


def learnt(count=6) -> ClutterMap:
    counted = ClutterMap()
    for _ in range(count):
        assert counted.add(volume(HILL))
    return counted


def test_frequent_echo_of_dry_volumes_is_removed_in_rain_and_the_rest_is_kept(tmp_path):
    write_map(map_path(tmp_path, "r"), learnt())
    known = read_map(tmp_path, "r")
    assert known.volumes == 6 and read_map(tmp_path, "other") is None
    rain = volume(np.s_[80:100, 40:90])
    cleaned, removed = clean(rain, ONLY_MAP, (), known)
    hill = np.zeros((360, 400), bool)
    hill[HILL] = True
    assert np.array_equal(cleaned.sweeps[0].removed, hill)
    assert removed == {"clutter map": pytest.approx(30 / 1000)}
    assert clean(rain, replace_quality(clutter_frequency=0), (), known)[1] == {}
    above = replace(rain, sweeps=(replace(rain.sweeps[0], elevation=2.0),))
    assert clean(above, ONLY_MAP, (), known)[1] == {}  # another beam sees other ground


def replace_quality(**changes) -> Quality:
    return ONLY_MAP.model_copy(update=changes)


def test_rain_silence_and_too_few_volumes_teach_nothing():
    counted = ClutterMap()
    assert not counted.add(volume(np.s_[:, 200:300]))  # rain far away
    silent = volume()
    assert not counted.add(replace(silent, sweeps=(replace(silent.sweeps[0], blank=True),)))
    assert counted.volumes == 0
    assert learnt(4).frequency(volume().sweeps[0]) is None
    assert learnt(6).frequency(volume().sweeps[0]).max() == 1.0


def test_a_damaged_map_is_no_silent_loss(tmp_path):
    path = map_path(tmp_path, "r")
    write_map(path, learnt())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreUnavailable, match=r"r\.npz cannot be read"):
        read_map(tmp_path, "r")


def test_a_blocked_sector_is_not_measured_and_the_next_beam_is_taken():
    low, high = volume(np.s_[:], 10.0).sweeps[0], volume(np.s_[:], 40.0, elevation=1.5).sweeps[0]
    both = replace(volume(), sweeps=(low, high))
    hidden = BlockedSector(azimuths=(350, 10), below_elevation=1.0, beyond_km=20)
    cleaned, _ = clean(both, ONLY_MAP, (hidden,))
    first, second = cleaned.sweeps
    gone = np.isnan(first.dbz)
    assert gone[[0, 9, 350, 359], 100].all() and not gone[[10, 180, 349], 100].any() and not gone[0, 30]
    assert not np.isnan(second.dbz).any() and first.removed is None
    grid = centred_grid(GRID["crs"], (200, 200), 1000.0, (5.0, 51.0))
    dbz = grid_volume(cleaned, grid, (Level("lowest"),)).dbz[0]
    assert dbz[50, 100] == 40.0 and dbz[150, 100] == 10.0 and dbz[95, 100] == 10.0  # north, south, near


def behel(uri):
    source = {
        "kind": "volumes",
        "uri": str(uri),
        "pattern": r"(?P<time>\d{14})\.rad\.(?P<radar>behel)\.pvol\.dbzh\.scanz\.hdf",
    }
    return synthetic_domain("behel", cadence_minutes=5, grid={**GRID, "centre": (5.41, 51.07)}, source=source)


def test_a_real_radar_on_a_dry_day_and_in_rain(sample_data, store):
    """Learnt from the first six volumes of a dry day; tried on the eighth, and on heavy rain of another year."""
    folder = sample_data / "rmi_behel_scanz_20200207"
    (learned,) = learn_clutter(behel(folder), store, TIME, TIME.replace(minute=25))
    assert (learned.radar, learned.volumes, learned.dry) == ("behel", 6, 6) and 0.01 < learned.clutter < 0.05
    known = read_map(store.clutter("behel"), "behel")
    dry = read_volume(folder / "20200207133500.rad.behel.pvol.dbzh.scanz.hdf", "behel", TIME)
    rain = read_volume(sample_data / "volumes/odim_h5/behel.pvol.hdf", "behel", TIME)

    grid = centred_grid(GRID["crs"], (300, 300), 1000.0, (5.41, 51.07))

    def area(seen: Volume, clutter) -> float:
        cleaned, _ = clean(seen, Quality(), (), clutter)
        return (grid_volume(cleaned, grid, (Level("lowest"),)).dbz[0] > 15).sum()

    assert area(dry, known) < 0.1 * area(dry, None)
    assert area(rain, known) > 0.99 * area(rain, None)


def test_the_next_ingest_uses_what_was_learnt(sample_data, root, store, catalog):
    domain = behel(sample_data / "rmi_behel_scanz_20200207")
    settings = settings_for(root, domain)
    shares = []
    for start in (TIME.replace(minute=25), TIME.replace(minute=35)):
        assert operations.ingest(settings, "behel", start, start, NOW).ingest.framed == 1
        rows = catalog.read(sa.select(tables.frames).where(tables.frames.c.valid_time == times.seconds(start)))
        shares.append(rows[0]["echo"])
        operations.learn_clutter(settings, "behel", TIME, TIME.replace(minute=30), NOW)
    assert shares[1] < 0.3 * shares[0]


def test_echo_that_nothing_gives_is_removed_before_the_field_is_moved():
    strong = volume(np.s_[10:20, 50:60], 78.0)
    assert clean(strong, ONLY_MAP)[1] == {"too strong": pytest.approx(1.0)}
    assert clean(strong, replace_quality(max_dbz=0))[1] == {}


def test_composites_have_no_clutter_maps(store):
    with pytest.raises(NowcastError, match="polar volumes"):
        learn_clutter(synthetic_domain(), store, TIME, TIME)

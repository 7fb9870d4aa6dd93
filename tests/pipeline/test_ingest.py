"""What is received becomes frames; what cannot be used is kept aside with its reason, and the rest goes on."""

import dataclasses
import multiprocessing
import shutil
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.errors import SettingsError, StoreUnavailable
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.grayscale import ECHO
from pipeline.grids import centred_grid
from pipeline.holdings import holdings
from pipeline.ingest import ingest
from pipeline.rebuild import rebuild
from pipeline.sources.readers import READERS
from pipeline.sources.synthetic import SyntheticRain, write_composite
from pipeline.storage import Store
from tests.conftest import NOW, brisbane_domain, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
DAY = (times.parse_time("2020-10-31"), times.parse_time("2020-11-01"))
CRS = "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs"
GRID = centred_grid(CRS, (64, 64), 2000.0, (5.0, 51.0))


def composites(folder) -> Domain:
    """A domain of ODIM composites in ``folder``."""
    folder.mkdir(exist_ok=True)
    return synthetic_domain(
        "odim",
        grid={"native": True},
        source={"kind": "gridded", "reader": "odim_comp", "uri": str(folder)},
    )


def put(folder, time, rate=None, name=None):
    rain = SyntheticRain(synthetic_domain().source, synthetic_domain())
    rate = rain.rain_rate(time) if rate is None else rate
    path = folder / (name or f"comp_{times.compact(time)}.h5")
    write_composite(path, rate, GRID, time)
    return path


def take_in(domain, store, catalog, now=NOW):
    return ingest(domain, store, catalog, T0 - timedelta(days=1), T0 + timedelta(days=1), now)


def test_brisbane_frames_and_a_second_run_without_work(sample_data, store, catalog):
    domain = brisbane_domain(sample_data / "bom_66_prcp-c10_20201031")
    end = times.parse_time("2020-10-31T02:00Z")
    first = ingest(domain, store, catalog, DAY[0], end, NOW)
    assert (first.framed, first.unchanged, first.quarantined) == (13, 0, [])
    again = ingest(domain, store, catalog, DAY[0], end, NOW)
    assert (again.framed, again.unchanged) == (0, 13)
    with h5py.File(sample_data / "bom_66_prcp-c10_20201031/66_20201031_020000.prcp-c10.nc") as file:
        rate = file["precipitation"][:].reshape(64, 8, 64, 8).mean(axis=(1, 3)) * 0.05 * 6
    frame = Archive(store, domain).read(end)
    assert np.array_equal(frame.state == ECHO, rate >= 0.3)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"not hdf5" * 100, "HDF5"), (None, "HDF5")],
    ids=["empty", "foreign", "truncated"],
)
def test_a_damaged_file_is_quarantined_with_its_bytes_and_the_rest_goes_on(tmp_path, store, catalog, content, said):
    domain = composites(tmp_path / "in")
    for n in range(3):
        put(tmp_path / "in", T0 + n * timedelta(minutes=10))
    bad = tmp_path / "in" / f"comp_{times.compact(T0 + timedelta(minutes=10))}.h5"
    content = bad.read_bytes()[:3000] if content is None else content
    bad.write_bytes(content)
    result = take_in(domain, store, catalog)
    assert result.framed == 2
    ((key, reason),) = result.quarantined
    assert key == bad.name and bad.name in reason and said in reason
    (kept,) = (store.root / "quarantine" / "odim").iterdir()
    assert kept.read_bytes() == content
    assert take_in(domain, store, catalog).unchanged == 3  # a bad file is not tried again and again
    put(tmp_path / "in", T0 + timedelta(minutes=10))  # until it arrives whole
    assert take_in(domain, store, catalog).framed == 1


def test_a_file_that_was_replaced_by_a_good_one_is_no_problem_any_more(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    path = put(tmp_path / "in", T0)
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    take_in(domain, store, catalog)
    assert holdings(catalog, ["odim"])[0].unusable == 1
    path.write_bytes(good)
    take_in(domain, store, catalog)
    assert (holdings(catalog, ["odim"])[0].frames, holdings(catalog, ["odim"])[0].unusable) == (1, 0)


def test_a_good_file_that_was_overwritten_by_garbage_is_a_problem(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    path = put(tmp_path / "in", T0)
    take_in(domain, store, catalog)
    path.write_bytes(b"garbage")
    take_in(domain, store, catalog)
    found = holdings(catalog, ["odim"])[0]
    assert found.unusable == 1 and path.name in found.newest_problem


def test_negative_rain_is_no_rain_at_all(tmp_path, store, catalog, monkeypatch):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    real = READERS["odim_comp"].read

    def negative(path, reading):
        return dataclasses.replace(real(path, reading), values=real(path, reading).values - 1)

    monkeypatch.setitem(READERS, "odim_comp", dataclasses.replace(READERS["odim_comp"], read=negative))
    assert "found -1" in take_in(domain, store, catalog).quarantined[0][1]


def test_the_fault_of_the_archive_is_not_that_of_the_file(tmp_path, store, catalog, monkeypatch):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    take_in(domain, store, catalog)
    put(tmp_path / "in", T0 + timedelta(minutes=10))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken, pytest.raises(StoreUnavailable, match="cannot write"):
        broken.setattr("pipeline.storage.os.replace", fail)
        take_in(domain, store, catalog)
    assert holdings(catalog, ["odim"])[0].unusable == 0
    assert take_in(domain, store, catalog).framed == 1


def test_what_only_other_settings_name_is_said_at_a_rebuild(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    take_in(domain, store, catalog)
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.frames))
    other = synthetic_domain("other")
    assert rebuild([other], store, catalog).unknown == ["odim"]
    assert rebuild([other, domain], store, catalog).unknown == []


def test_a_folder_of_names_that_the_reader_does_not_know_is_said(tmp_path, store, catalog, caplog):
    domain = composites(tmp_path / "in")
    (tmp_path / "in" / "README.txt").write_text("nothing here")
    assert take_in(domain, store, catalog).framed == 0
    assert "none of the 1 names" in caplog.text and "README.txt" in caplog.text


def test_means_over_ten_minutes_are_no_five_minute_frames(sample_data, store, catalog):
    domain = brisbane_domain(sample_data / "bom_66_prcp-c10_20201031", cadence_minutes=5)
    with pytest.raises(SettingsError, match="mean over 10 minutes"):
        ingest(domain, store, catalog, DAY[0], DAY[0] + timedelta(hours=1), NOW)
    assert Archive(store, domain).times() == []


def test_a_silent_radar_is_not_dry(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0, np.full((64, 64), np.nan, np.float32))
    ((_, reason),) = take_in(domain, store, catalog).quarantined
    assert "0.0%" in reason and "not dry" in reason
    assert Archive(store, domain).read(T0) is None


def test_a_file_from_the_future_is_quarantined(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    put(tmp_path / "in", T0 + timedelta(minutes=10))
    result = take_in(domain, store, catalog, now=T0 + timedelta(minutes=1))
    assert result.framed == 1
    assert "after now (2024-06-01T02:01:00Z)" in result.quarantined[0][1]
    again = take_in(domain, store, catalog, now=T0 + timedelta(minutes=2))
    assert (again.quarantined, again.unchanged) == ([], 2)  # said once, not at every ingest
    assert take_in(domain, store, catalog, now=T0 + timedelta(minutes=10)).framed == 1  # when its time has come


def test_a_file_that_cannot_be_read_now_is_tried_again(tmp_path, store, catalog, monkeypatch):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)

    def fails(self, ref, folder):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.sources.gridded.GriddedFiles.fetch", fails)
        result = take_in(domain, store, catalog)
    assert "Input/output error" in result.quarantined[0][1] and result.framed == 0
    assert take_in(domain, store, catalog).framed == 1


def test_a_decoder_that_has_no_words_does_not_stop_the_rest(tmp_path, store, catalog, monkeypatch):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    bad = put(tmp_path / "in", T0 + timedelta(minutes=10))
    with h5py.File(bad, "r+") as file:  # a group where the array should be
        del file["dataset1/data1/data"]
        file.create_group("dataset1/data1/data")
    result = take_in(domain, store, catalog)
    assert result.framed == 1 and bad.name in result.quarantined[0][1]


def test_a_file_on_another_grid_is_quarantined_and_the_rest_goes_on(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    for n in (0, 1, 2):
        put(tmp_path / "in", T0 + n * timedelta(minutes=10))
    moved = centred_grid(CRS, (64, 64), 2000.0, (6.0, 51.0))
    time = T0 + timedelta(minutes=10)
    rate = np.maximum(np.random.default_rng(0).normal(0, 5, (64, 64)), 0).astype(np.float32)
    write_composite(tmp_path / "in" / f"comp_{times.compact(time)}.h5", rate, moved, time)
    result = take_in(domain, store, catalog)
    assert result.framed == 2
    assert "this one has 64 x 64 cells" in result.quarantined[0][1]


def test_a_name_that_contradicts_the_content_is_quarantined(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0, name=f"comp_{times.compact(T0 + timedelta(hours=1))}.h5")
    ((_, reason),) = take_in(domain, store, catalog).quarantined
    assert "2024-06-01T03:00:00Z" in reason and "2024-06-01T02:00:00Z" in reason


def test_of_two_files_for_an_instant_the_more_complete_stands(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    whole = SyntheticRain(synthetic_domain().source, synthetic_domain()).rain_rate(T0)
    half = whole.copy()
    half[:32] = np.nan
    put(tmp_path / "in", T0, half, name=f"a_{times.compact(T0)}.h5")
    put(tmp_path / "in", T0, whole, name=f"b_{times.compact(T0)}.h5")
    put(tmp_path / "in", T0, half, name=f"c_{times.compact(T0)}.h5")
    result = take_in(domain, store, catalog)
    assert (result.framed, result.duplicates) == (2, 1)
    assert Archive(store, domain).read(T0).observed.all()
    states = {row["key"][0]: row["state"] for row in catalog.read(sa.select(tables.volumes))}
    assert states["c"] == "duplicate"


def test_late_files_out_of_order_make_the_same_archive(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    instants = [T0 + n * timedelta(minutes=10) for n in range(4)]
    for n in (2, 0, 3, 1):
        put(tmp_path / "in", instants[n])
        assert take_in(domain, store, catalog).framed == 1
    other = Store(tmp_path / "other")
    ingest(domain, other, Catalog(f"sqlite:///{tmp_path / 'other.sqlite'}"), T0, instants[-1], NOW)
    for time in instants:
        assert checksum(Archive(store, domain).read(time)) == checksum(Archive(other, domain).read(time))


def test_a_file_between_the_slots_is_left_out(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0 + timedelta(minutes=4))
    put(tmp_path / "in", T0 + timedelta(seconds=50))
    result = take_in(domain, store, catalog)
    assert (result.framed, result.off_axis) == (1, 1)
    (row,) = catalog.read(sa.select(tables.frames.c.offset_s))
    assert row["offset_s"] == 50


def test_too_large_files_are_not_read(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    small = domain.source.model_copy(update={"max_file_mb": 0.001})
    result = take_in(domain.model_copy(update={"source": small}), store, catalog)
    assert "max_file_mb" in result.quarantined[0][1]


def test_a_source_folder_that_is_not_there(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(StoreUnavailable, match="source folder"):
        take_in(domain, store, catalog)


def _ingest_day(settings) -> None:
    operations.ingest(settings, "brisbane", *DAY, NOW)


def test_two_processes_that_ingest_the_same_day_leave_144_whole_frames(sample_data, root):
    domain = brisbane_domain(sample_data / "bom_66_prcp-c10_20201031")
    settings = settings_for(root, domain)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_ingest_day, args=(settings,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    store, catalog = operations.open_root(settings)
    archive = Archive(store, domain)
    rows = {row["valid_time"]: row["sha256"] for row in catalog.read(sa.select(tables.frames))}
    assert len(archive.times()) == len(rows) == 144
    assert all(rows[times.seconds(t)] == checksum(archive.read(t)) for t in archive.times())
    assert list(store.temporary.iterdir()) == []


def test_a_rebuilt_catalog_finds_frames_and_quarantine_again(tmp_path, store, catalog):
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0)
    (tmp_path / "in" / f"comp_{times.compact(T0 + timedelta(minutes=10))}.h5").write_bytes(b"x")
    take_in(domain, store, catalog)
    (before,) = catalog.read(sa.select(tables.frames.c.sha256))
    with catalog.write() as connection:
        for table in (tables.frames, tables.volumes):
            connection.execute(sa.delete(table))
    found = rebuild([domain], store, catalog)
    assert (found.frames, found.quarantined, found.damaged) == (1, 1, [])
    assert catalog.read(sa.select(tables.frames.c.sha256)) == [before]
    again = take_in(domain, store, catalog)
    assert (again.framed, again.unchanged, again.duplicates) == (1, 1, 0)


def test_a_source_none_of_whose_names_fits_is_a_problem_of_every_result(tmp_path, root):
    """It stood in the log alone, and a run ended with "no frame at the reference time"."""
    domain = composites(tmp_path / "in")
    put(tmp_path / "in", T0, name="radar_of_today.h5")
    settings = settings_for(root, domain)
    for report in (
        operations.backfill(settings, "odim", T0, T0, NOW),
        operations.run(settings, "odim", T0, NOW),
        operations.ingest(settings, "odim", None, None, NOW),
    ):
        assert "none of the 1 names" in report.problems[0] and "radar_of_today.h5" in report.problems[0]
        assert READERS["odim_comp"].pattern.pattern in report.problems[0]

"""Archive, catalog, leases and the root, also with several processes at once."""

import multiprocessing
import os
import signal
import sqlite3
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline.catalog import Catalog, set_aside_damaged, upgrade
from pipeline.errors import BadInput, DamagedFrame, LeaseLost, SettingsError, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import ECHO, NO_ECHO, Frame
from pipeline.grids import Grid
from pipeline.storage import Store, safe_name
from tests.conftest import synthetic_domain

GRID = Grid("EPSG:3035", (8, 9), 0.0, 0.0, 2000.0, 2000.0)
SOURCE = FrameSource(GRID, 0.1, 0.0)
T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def either(store, either_url):
    """The catalog on SQLite, and on PostgreSQL."""
    catalog = Catalog(either_url)
    yield catalog
    catalog.close()


def frame(seed: int) -> Frame:
    pixels = np.random.default_rng(seed).integers(0, 255, GRID.shape).astype(np.uint8)
    return Frame(pixels[None], np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8))


def test_frames_come_back_at_their_time_whatever_the_order(store):
    archive = Archive(store, synthetic_domain())
    order = [3, 0, 150, 1]
    for n in order:
        archive.write(T0 + n * timedelta(minutes=10), frame(n), SOURCE)
    again = Archive(store, synthetic_domain())
    assert again.times() == [T0 + n * timedelta(minutes=10) for n in sorted(order)]
    for n in order:
        assert np.array_equal(again.read(T0 + n * timedelta(minutes=10)).pixels, frame(n).pixels)
    assert again.read(T0 + timedelta(minutes=20)) is None
    assert again.read(T0 - timedelta(days=9)) is None
    assert again.source() == SOURCE


def test_a_frame_is_one_object(store):
    archive = Archive(store, synthetic_domain())
    archive.write(T0, frame(0), SOURCE)
    objects = lambda: {p for p in store.archive("small").rglob("*") if p.is_file()}  # noqa: E731
    before = objects()
    archive.write(T0 + timedelta(minutes=10), frame(1), SOURCE)
    assert len(objects() - before) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zr": {"a": 300.0, "b": 1.4}}, "zr"),
        ({"scale": {"dbz_min": -10.0, "dbz_max": 70.0}}, "scale"),
        ({"cadence_minutes": 5}, "cadence_minutes"),
    ],
)
def test_an_archive_is_never_read_or_written_under_other_settings(store, change, said):
    Archive(store, synthetic_domain()).write(T0, frame(0), SOURCE)
    other = Archive(store, synthetic_domain(**change))
    for use in (
        lambda: other.read(T0),
        lambda: other.times(),
        lambda: other.write(T0 + timedelta(minutes=10), frame(1), SOURCE),
    ):
        with pytest.raises(SettingsError, match=rf"domains\.small\.{said}"):
            use()


@pytest.mark.parametrize(
    "source",
    [
        FrameSource(Grid("EPSG:3035", (8, 9), 0.0, 0.0, 1000.0, 1000.0), 0.1, 0.0),
        FrameSource(GRID, 0.3, 0.0),
        FrameSource(GRID, 0.1, 600.0),
    ],
    ids=["grid", "floor", "interval"],
)
def test_a_frame_of_another_kind_is_refused_and_the_next_one_is_not(store, source):
    archive = Archive(store, synthetic_domain())
    archive.write(T0, frame(0), SOURCE)
    with pytest.raises(BadInput, match="this one has 8 x 9 cells"):
        archive.write(T0 + timedelta(days=1), frame(1), source)
    archive.write(T0 + timedelta(days=1), frame(1), SOURCE)


def test_a_damaged_object_says_which(store):
    archive = Archive(store, synthetic_domain())
    archive.write(T0, frame(0), SOURCE)
    (path,) = (store.archive("small") / "2024/06/01.zarr/frames/c").rglob("0/0/0")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedFrame, match=r"2024-06-01T02:00:00Z.*01\.zarr"):
        archive.read(T0)


def test_a_time_off_the_axis_is_refused(store):
    with pytest.raises(ValueError, match="10-minute axis"):
        Archive(store, synthetic_domain()).write(T0 + timedelta(minutes=3), frame(0), SOURCE)


def _count_up(url: str, name: str, times: int) -> None:
    catalog = Catalog(url)
    for _ in range(times):
        with catalog.write() as connection:
            s = tables.scores
            day = connection.execute(sa.select(s.c.day).where(s.c.path == "counter")).scalar() or 0
            row = {"path": "counter", "domain": name, "kind": "", "model": "", "day": day + 1, "content_digest": ""}
            catalog.upsert(connection, s, [row])


def test_four_processes_that_write_at_once_lose_nothing(either):
    workers = [SPAWN.Process(target=_count_up, args=(either.url, f"d{n}", 200)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0] * 4
    assert either.read(sa.select(tables.scores.c.day)) == [{"day": 800}]


def test_several_processes_make_the_catalog_at_once(either_url):
    workers = [SPAWN.Process(target=Catalog, args=(either_url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0] * 4


def test_a_lease_excludes_until_it_is_given_back(either):
    with either.lease("x") as first:
        assert first is not None
        with either.lease("x") as second:
            assert second is None
        with either.lease("y") as other:
            assert other is not None
    with either.lease("x") as again:
        assert again is not None


def test_a_lease_that_was_taken_over_does_not_publish(either):
    with either.lease("x") as first:
        with either.write() as connection:  # its holder slept past the expiry, and another process took it
            connection.execute(sa.update(tables.leases).values(token="other", expires_at=1e12))
        with pytest.raises(LeaseLost), either.write() as connection:
            first.check(connection)


def _hold(url: str, held) -> None:
    with Catalog(url).lease("x"):
        held.set()
        time.sleep(60)


def test_the_lease_of_a_killed_process_is_free_at_once(either):
    held = SPAWN.Event()
    worker = SPAWN.Process(target=_hold, args=(either.url, held))
    worker.start()
    assert held.wait(60)
    with either.lease("x") as lease:
        assert lease is None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with either.lease("x") as lease:
        assert lease is not None


def test_another_schema_version_names_the_way_out(either):
    for version, said in (("0000", "nowcast catalog upgrade"), ("9999", "newer version")):
        with either.write() as connection:
            connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{version}'"))
        with pytest.raises(StoreUnavailable, match=said):
            Catalog(either.url)


def test_upgrade_of_a_newer_schema_is_an_error_and_reading_needs_no_write_lock(either):
    with either.write():  # a writer is at work
        assert Catalog(either.url).read(sa.select(tables.frames)) == []
    with either.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match="newer version"):
        upgrade(either.url)


def test_migrations_make_the_tables_that_the_code_uses(either):
    inspector = sa.inspect(either.engine)
    for table in tables.metadata.sorted_tables:
        found = {c["name"]: c for c in inspector.get_columns(table.name)}
        assert set(found) == {c.name for c in table.columns}
        for column in table.columns:
            assert found[column.name]["nullable"] == column.nullable, f"{table.name}.{column.name}"
        assert set(inspector.get_pk_constraint(table.name)["constrained_columns"]) == {
            c.name for c in table.primary_key
        }
        assert {i["name"] for i in inspector.get_indexes(table.name)} == {i.name for i in table.indexes}


def test_a_file_that_is_no_database_and_a_wrong_url(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'c.sqlite'}")
    for url in ("foo://x", "postgresql+psycopg://u@127.0.0.1:9/x"):
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            Catalog(url)
    with pytest.raises(StoreUnavailable, match="not a database URL"):
        Catalog("catalog.sqlite")


def test_a_damaged_catalog_is_kept_aside_and_made_again(tmp_path):
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    (tmp_path / "c.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(StoreUnavailable, match="nowcast catalog rebuild"):
        Catalog(url)
    (kept,) = set_aside_damaged(url)
    assert kept.read_bytes().startswith(b"no database")
    assert Catalog(url).read(sa.select(tables.frames)) == []
    assert set_aside_damaged(url) == []  # a whole one stays


def test_sqlite_keeps_a_write_ahead_log(catalog):
    path = catalog.url.removeprefix("sqlite:///")
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_root_of_a_newer_version_is_refused(root):
    Store(root)
    (root / "format.json").write_text('{"format_version": 2}')
    with pytest.raises(StoreUnavailable, match="format 2, this version reads 1"):
        Store(root)


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        Store(tmp_path / "file" / "root")


def test_a_failed_publish_leaves_the_old_file_and_no_other(store):
    path = store.root / "x" / "product"
    with store.publish(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(ZeroDivisionError), store.publish(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert list(store.temporary.iterdir()) == []


def _die_while_publishing(root, started) -> None:
    store = Store(root)
    with store.publish(store.root / "x") as temporary, store.scratch():
        temporary.write_text("half")
        started.set()
        time.sleep(60)


def test_what_a_killed_process_left_is_removed_but_not_that_of_a_living_one(store):
    started = SPAWN.Event()
    worker = SPAWN.Process(target=_die_while_publishing, args=(store.root, started))
    worker.start()
    assert started.wait(60)
    assert store.remove_stale_temporaries() == 0
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert store.remove_stale_temporaries() == 2
    assert list(store.temporary.iterdir()) == []


def test_journal_skips_a_line_that_a_crash_cut(store):
    store.append_journal(T0, {"event": "a"})
    with (store.root / "journal" / "2024-06-01.jsonl").open("a") as file:
        file.write('{"event": "b", "ha')
    store.append_journal(T0, {"event": "c"})
    assert [entry["event"] for entry in store.read_journal()] == ["a", "c"]


@pytest.mark.parametrize("name", ["../../etc/passwd", ".hidden", "a/b\\c", "x" * 300, ""])
def test_names_from_outside_never_become_paths(name):
    safe = safe_name(name)
    assert "/" not in safe and not safe.startswith(".") and 0 < len(safe) <= 80

"""Backup of the catalog under load; its loss, restoring, and finding what came after."""

import multiprocessing
import sqlite3

import pytest
import sqlalchemy as sa

from pipeline import backup, operations
from pipeline import catalog as tables
from pipeline.catalog import Catalog
from pipeline.errors import SettingsError, StoreUnavailable
from pipeline.rebuild import rebuild
from pipeline.storage import Store
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import NOW, STEP, T0, backfill

SPAWN = multiprocessing.get_context("spawn")
# what a rebuild cannot know of what came after the backup
LOST = {"arrived_at", "source_key", "offset_s", "removed", "framed_at", "stages", "cause", "issue_time"}
LOST |= {"verified", "verified_reason", "observations_digest"}


def _write_on(url: str, going, stop) -> None:
    catalog, n = Catalog(url), 0
    while not stop.is_set():
        with catalog.write() as connection:  # two rows that must agree
            n += 1
            for path in ("a", "b"):
                row = {"path": path, "domain": "load", "kind": "", "model": "", "day": n, "content_digest": ""}
                catalog.upsert(connection, tables.scores, [row])
        going.set()


def rows(settings, table) -> list[dict]:
    catalog = Catalog(settings.catalog)
    found = catalog.read(sa.select(table).where(table.c.domain == "small").order_by(*table.primary_key))
    catalog.close()
    return found


def test_backup_under_load_then_loss_restore_and_rebuild_give_the_catalog_again(root, tmp_path):
    settings = settings_for(root, synthetic_domain(model="last_frame"))
    backfill(settings, T0, T0)
    kept, file = {t: rows(settings, t) for t in (tables.frames, tables.cycles, tables.volumes)}, tmp_path / "b.sqlite"
    going, stop = SPAWN.Event(), SPAWN.Event()
    writer = SPAWN.Process(target=_write_on, args=(settings.catalog, going, stop))
    writer.start()
    assert going.wait(60)
    try:
        counts = backup.backup(settings.catalog, file, Store(root))
    finally:
        stop.set()
        writer.join(30)
    assert writer.exitcode == 0 and counts["cycles"] == 1
    with sqlite3.connect(file) as copy:
        days = {day for (day,) in copy.execute("SELECT day FROM scores WHERE domain = 'load'")}
    assert len(days) == 1  # one moment, between two transactions
    backfill(settings, T0 + STEP, T0 + STEP)  # what comes after
    whole = {t: rows(settings, t) for t in (tables.frames, tables.cycles)}
    for path in root.glob("catalog.sqlite*"):
        path.unlink()
    assert backup.restore(settings.catalog, file, Store(root)).rows["cycles"] == 1
    store, catalog = operations.open_root(settings)
    assert rebuild([settings.domain("small")], store, catalog).damaged == []
    operations.verify(settings, "small", None, None, NOW)
    for table, wanted in whole.items():
        found = rows(settings, table)
        assert [{k: v for k, v in row.items() if k not in LOST} for row in found] == [
            {k: v for k, v in row.items() if k not in LOST} for row in wanted
        ]
        assert [row for row in found if row in kept[table]] == kept[table]  # arrivals and latencies too
    assert rows(settings, tables.volumes)[: len(kept[tables.volumes])] == kept[tables.volumes]
    assert {row["verified"] for row in rows(settings, tables.cycles)} == {"fully"}
    assert backfill(settings, T0, T0 + STEP).cycles == {"unchanged": 2}


def test_restore_is_refused_while_somebody_works_and_keeps_what_stood(catalog, store, tmp_path):
    file = tmp_path / "b.sqlite"
    backup.backup(catalog.url, file, store)
    with catalog.write() as connection:
        row = {"path": "after", "domain": "d", "kind": "", "model": "", "day": 1, "content_digest": ""}
        catalog.upsert(connection, tables.scores, [row])
    with catalog.lease("ingest/small"), pytest.raises(StoreUnavailable, match=r"in use \(ingest/small by"):
        backup.restore(catalog.url, file, store)
    assert len(catalog.read(sa.select(tables.scores))) == 1
    with pytest.raises(StoreUnavailable, match=r"another process has the catalog .* open"):
        backup.restore(catalog.url, file, store)  # its next row would go to the catalog that is kept aside
    assert len(catalog.read(sa.select(tables.scores))) == 1
    catalog.close()
    (kept,) = backup.restore(catalog.url, file, store).kept
    again = Catalog(catalog.url)
    assert again.read(sa.select(tables.scores)) == [] and again.read(sa.select(tables.leases)) == []
    assert sqlite3.connect(kept).execute("SELECT path FROM scores").fetchall() == [("after",)]


def test_a_backup_holds_no_lease_of_those_who_worked(catalog, store, tmp_path):
    with catalog.lease("x"):
        backup.backup(catalog.url, tmp_path / "b.sqlite", store)
    catalog.close()
    backup.restore(catalog.url, tmp_path / "b.sqlite", store)
    with Catalog(catalog.url).lease("x") as lease:
        assert lease is not None


def test_what_is_no_backup_of_this_schema_is_refused(catalog, store, tmp_path):
    file = tmp_path / "b.sqlite"
    backup.backup(catalog.url, file, store)
    with pytest.raises(SettingsError, match="exists already"):
        backup.backup(catalog.url, file, store)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0002'")
    with pytest.raises(SettingsError, match="schema 0002, this version uses 0004"):
        backup.restore(catalog.url, file, store)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SettingsError, match="not a whole SQLite database"):
        backup.restore(catalog.url, file, store)
    file.unlink()
    sqlite3.connect(file).execute("CREATE TABLE t (x)")
    with pytest.raises(SettingsError, match="no catalog"):
        backup.restore(catalog.url, file, store)
    with pytest.raises(SettingsError, match="no backup at"):
        backup.restore(catalog.url, tmp_path / "absent", store)
    assert catalog.read(sa.select(tables.frames)) == []


def test_postgresql_has_its_own_tool_and_the_password_is_not_shown(store, tmp_path):
    url = "postgresql+psycopg://me:secret@db.example:5433/nowcast"
    for work in (backup.backup, backup.restore):
        with pytest.raises(SettingsError) as said:
            work(url, tmp_path / "b", store)
        assert "secret" not in str(said.value)
        assert "--host=db.example --port=5433 --username=me" in str(said.value)

"""Backup and restore of the catalog: what is only there (arrival times, latencies) survives its loss.

The stores are backed up like any folder; the catalog is not, since files of SQLite must not be copied while it is used.
"""

import logging
import shlex
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline.catalog import SCHEMA, Catalog
from pipeline.errors import SettingsError, StoreUnavailable
from pipeline.storage import Store, flush

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """``kept``: the catalog that was replaced, under its new names; ``rows`` of each table."""

    kept: list[Path]
    rows: dict[str, int]


def backup(url: str, file: Path, store: Store) -> dict[str, int]:
    """Copy the catalog to ``file`` while others go on writing: its state at one moment, or no file.

    Returns:
        Rows of each table.

    Raises:
        SettingsError: the catalog is PostgreSQL, which has its own tool, or the file exists.
        StoreUnavailable: the catalog cannot be read, or the file not be written.
    """
    database = _database(url, "back it up with", f"pg_dump --format=custom --file={shlex.quote(str(file))}")
    if file.exists():
        raise SettingsError(f"{file} exists already; a backup replaces no other")
    Catalog(url).close()  # absent, or of another schema, it is said in words
    try:
        with store.publish(file) as temporary:
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(temporary)) as target:
                source.backup(target)  # at once: in steps it would begin anew with every write of others
                target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            rows = _checked(temporary)
    except sqlite3.Error as err:
        raise StoreUnavailable(f"the catalog {database} cannot be copied to {file}: {err}") from err
    return rows


def restore(url: str, file: Path, store: Store) -> Restored:
    """Put a backup in the place of the catalog; what came after it is then found by ``nowcast catalog rebuild``.

    Raises:
        SettingsError: the catalog is PostgreSQL; or the file is no backup of this schema.
        StoreUnavailable: somebody works on the root, or files cannot be written.
    """
    database = _database(url, "restore it with", f"pg_restore --clean {shlex.quote(str(file))} --dbname")
    if not file.is_file():
        raise SettingsError(f"no backup at {file}")
    try:
        rows = _checked(file)
    except sqlite3.Error as err:
        raise SettingsError(f"{file} is not a whole SQLite database: {err}") from err
    target = Path(database)
    with store.new_file(target) as temporary:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("DELETE FROM leases")  # of those who worked when it was made
            copy.commit()
            copy.execute("PRAGMA journal_mode=DELETE")
        flush(temporary)
        kept = _replace(url, target, temporary)
        store.put(temporary, target)
    return Restored(kept, rows)


def _replace(url: str, target: Path, temporary: Path) -> list[Path]:
    """Keep the standing catalog aside, if nobody works with it."""
    if not target.is_file():
        return []
    try:
        catalog = Catalog(url)
    except StoreUnavailable as err:
        log.warning("the catalog that is replaced cannot be used: %s", err)
        return tables.keep_aside(str(target), "replaced")
    with closing(catalog), catalog.write() as connection:
        held = tables.leases_held(connection)
    if held:
        names = ", ".join(f"{row['name']} by {row['owner']}" for row in held[:5])
        raise StoreUnavailable(f"the catalog {target} is in use ({names}); stop that first")
    try:
        with closing(sqlite3.connect(target, timeout=1.0, isolation_level=None)) as alone:
            # succeeds only if nobody else has it open, who would go on writing to the one that is kept aside
            alone.execute("PRAGMA journal_mode=DELETE")
            alone.execute("BEGIN EXCLUSIVE")
            return tables.keep_aside(str(target), "replaced")
    except sqlite3.OperationalError as err:
        raise StoreUnavailable(f"another process has the catalog {target} open ({err}); stop that first") from err


def _checked(file: Path) -> dict[str, int]:
    """Rows of each table of a backup.

    Raises:
        SettingsError: it is no catalog of this schema.
        sqlite3.Error: it is no whole database.
    """
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        if (found := connection.execute("PRAGMA quick_check").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(found[0]))
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in names:
            raise SettingsError(f"{file} is a database, but no catalog")
        (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if version != SCHEMA:
            raise SettingsError(
                f"{file} has schema {version}, this version uses {SCHEMA}; use the version of nowcast that made it, "
                "or lose what only it knows: `nowcast catalog rebuild`"
            )
        count = "SELECT count(*) FROM {}"
        return {t.name: connection.execute(count.format(t.name)).fetchone()[0] for t in tables.metadata.sorted_tables}


def _database(url: str, what: str, command: str) -> str:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return parsed.database
    if parsed.get_backend_name() != "postgresql":
        raise SettingsError(f"catalog: only SQLite files can be copied, found {parsed.get_backend_name()}")
    place = {"host": parsed.host, "port": parsed.port, "username": parsed.username}
    options = " ".join(f"--{key}={shlex.quote(str(value))}" for key, value in place.items() if value)
    raise SettingsError(
        f"the catalog is PostgreSQL; {what}: {command} {shlex.quote(parsed.database or '')} {options}; "
        "the password comes from PGPASSWORD or ~/.pgpass"
    )

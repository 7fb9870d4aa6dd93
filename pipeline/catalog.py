"""What exists and in what state: volumes, frames, cycles, score files, leases. SQL through SQLAlchemy Core.

SQLite is embedded, for one machine. Times are whole seconds since 1970 (instants of the axis) or floats (wall clock).
"""

import logging
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipeline.errors import LeaseLost, StoreUnavailable
from pipeline.settings import hide_secrets
from pipeline.storage import process_lives

log = logging.getLogger(__name__)

SCHEMA = "0003"
LEASE_S = 30.0
BUSY_S = 10.0
# a volume in one of these states is looked at again by a later ingest
RETRIED = ("future", "unreadable")

metadata = sa.MetaData()


def _table(name: str, keys: dict[str, Any], values: dict[str, Any]) -> sa.Table:
    columns = [sa.Column(k, t, primary_key=True) for k, t in keys.items()]
    columns += [sa.Column(k, t, nullable=k == "correlation") for k, t in values.items()]
    return sa.Table(name, metadata, *columns)


volumes = _table(
    "volumes",
    {"domain": sa.String(40), "key": sa.String(512), "etag": sa.String(64)},
    {
        "nominal_time": sa.BigInteger,
        "size": sa.BigInteger,
        "sha256": sa.String(64),
        "arrived_at": sa.Float,
        # framed, partial, duplicate, off_axis, future, unreadable; quarantined until somebody has looked at it, then
        # reviewed, or dropped if its bytes are gone (pipeline.quarantine)
        "state": sa.String(20),
        "reason": sa.Text,
        "radar": sa.String(40),
        "slot": sa.BigInteger,  # instant of the frame that a polar volume belongs to; 0 for others
        "measured_until": sa.Float,  # last sweep; 0 if it is not known
        "seen_at": sa.Float,  # when an ingest looked at it
    },
)
frames = _table(
    "frames",
    {"domain": sa.String(40), "valid_time": sa.BigInteger},
    {
        "sha256": sa.String(64),
        "source_key": sa.String(512),
        "arrived_at": sa.Float,
        "offset_s": sa.Float,
        "coverage": sa.Float,
        "echo": sa.Float,
        "removed": sa.Float,
        "inputs": sa.Text,  # JSON: radar, key, offset, alignment and share removed of every volume
        "framed_at": sa.Float,  # when it was written, or written again
    },
)
cycles = _table(
    "cycles",
    {"domain": sa.String(40), "reference_time": sa.BigInteger, "kind": sa.String(10), "revision": sa.Integer},
    {
        "state": sa.String(10),  # published or skipped
        "method": sa.String(80),
        "reason": sa.Text,
        "path": sa.String(512),
        "content_digest": sa.String(64),
        "baselines_digest": sa.String(64),
        "inputs_digest": sa.String(64),
        "model_checksum": sa.String(64),
        "correlation": sa.Float,
        "issue_time": sa.Float,
        "stages": sa.Text,
        "verified": sa.String(12),  # "", partly or fully
        "verified_reason": sa.Text,
        "observations_digest": sa.String(64),
        "cause": sa.Text,  # why it was started when it was: complete, deadline, ... (pipeline.lateness)
    },
)
scores = _table(
    "scores",
    {"path": sa.String(512)},
    {
        "domain": sa.String(40),
        "kind": sa.String(10),
        "model": sa.String(80),
        "day": sa.BigInteger,
        "content_digest": sa.String(64),
    },
)
# how the live process sees the feed of a domain
feeds = _table(
    "feeds",
    {"domain": sa.String(40)},
    {
        "since": sa.BigInteger,  # first instant that was to be forecast live
        "polled_at": sa.Float,  # last poll that ended well
        "fault_at": sa.Float,  # last poll that failed; 0 if the last one did not
        "fault": sa.Text,
    },
)
# what an operator was told; ended_at is 0 while it stands
alerts = _table(
    "alerts",
    {"domain": sa.String(40), "kind": sa.String(40), "subject": sa.String(80), "raised_at": sa.Float},
    {"ended_at": sa.Float, "text": sa.Text, "told": sa.String(12)},
)
leases = _table(
    "leases",
    {"name": sa.String(200)},
    {"owner": sa.String(120), "token": sa.String(32), "expires_at": sa.Float},
)

Row = dict[str, Any]


class Catalog:
    """One connection pool to the catalog.

    Raises:
        StoreUnavailable: it cannot be reached, or has another schema version.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        with self._reachable():
            self._check_schema()

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One writing transaction; on SQLite it takes the write lock at once (BEGIN IMMEDIATE)."""
        with self._reachable(), self.engine.begin() as connection:
            yield connection

    def read(self, query: Any) -> list[Row]:
        """Rows of a query as dictionaries."""
        with self._reachable(), self.engine.connect().execution_options(reading=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Iterable[Row]) -> None:
        """Insert rows, or replace the values of those whose key exists."""
        rows = list(rows)
        if not rows:
            return
        insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
        keys = [c.name for c in table.primary_key]
        values = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=values), rows)

    @contextmanager
    def lease(self, name: str, patience_s: float = 0.0) -> Iterator["Lease | None"]:
        """Hold the lease ``name`` while the block runs; None if another process keeps it for ``patience_s``.

        A thread renews it, so a long block keeps it and a killed process loses it after ``LEASE_S``.
        """
        lease = Lease(self, name)
        latest = time.monotonic() + patience_s
        while not lease.acquire():
            if time.monotonic() >= latest:
                yield None
                return
            time.sleep(0.5)
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(LEASE_S / 6):
                try:
                    if not lease.renew():
                        return
                except StoreUnavailable as err:
                    log.warning("the lease %s could not be renewed, trying again: %s", name, err)

        keeper = threading.Thread(target=renew, name=f"lease {name}", daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            stop.set()
            keeper.join()
            lease.release()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, SQLAlchemyError) as err:
            cause = (str(getattr(err, "orig", None) or err).splitlines() or [""])[0]
            if type(getattr(err, "orig", None)) is sqlite3.DatabaseError:  # what SQLite raises for a damaged file
                cause += "; `nowcast catalog rebuild` keeps it aside and makes a new one from the stores"
            raise StoreUnavailable(f"the catalog {hide_secrets(self.url)} cannot be used: {cause}") from err

    def _check_schema(self) -> None:
        found = schema_version(self.engine)
        if found is None:
            upgrade(self.url)
        elif found != SCHEMA:
            raise _other_schema(self.url, found)


class Lease:
    """Exclusion by a row with an owner, a token and an expiry by the database's own clock."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        self.catalog = catalog
        self.name = name
        self.token = uuid.uuid4().hex
        self.owner = f"{_machine()}:{os.getpid()}"

    def acquire(self) -> bool:
        """Take the lease if it is free, expired, or held by a process of this machine that has ended."""
        with self.catalog.write() as connection:
            now = _database_now(connection)
            held = connection.execute(sa.select(leases).where(leases.c.name == self.name)).mappings().first()
            if held is not None and held["expires_at"] > now and not _ended_here(held["owner"]):
                return False
            row = {"name": self.name, "owner": self.owner, "token": self.token, "expires_at": now + LEASE_S}
            self.catalog.upsert(connection, leases, [row])
        return True

    def renew(self) -> bool:
        """Move the expiry; False if the lease was lost."""
        with self.catalog.write() as connection:
            expiry = _database_now(connection) + LEASE_S
            changed = connection.execute(sa.update(leases).where(self._mine()).values(expires_at=expiry))
        return changed.rowcount == 1

    def check(self, connection: sa.Connection) -> None:
        """Inside the publishing transaction: the lease is still ours.

        Raises:
            LeaseLost: it expired and another process took it.
        """
        if connection.execute(sa.select(leases.c.name).where(self._mine())).first() is None:
            raise LeaseLost(f"the lease {self.name} was taken over by another process; nothing was recorded")

    def release(self) -> None:
        """Give it back; a lease lost meanwhile is left alone."""
        with self.catalog.write() as connection:
            connection.execute(sa.delete(leases).where(self._mine()))

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(leases.c.name == self.name, leases.c.token == self.token)


def from_seconds(value: float) -> datetime:
    """A time column as an aware datetime."""
    return datetime.fromtimestamp(value, UTC)


def leases_held(connection: sa.Connection) -> list[Row]:
    """Leases that somebody holds now."""
    rows = connection.execute(sa.select(leases).where(leases.c.expires_at > _database_now(connection))).mappings()
    return [dict(row) for row in rows if not _ended_here(row["owner"])]


def schema_version(engine: sa.Engine) -> str | None:
    """Version of the catalog's schema; None if it has no tables yet."""
    with engine.connect().execution_options(reading=True) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return str(version) if version else None


def upgrade(url: str) -> str:
    """Bring the schema to this version; several processes may ask at once. Returns the version."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    engine = _engine(url)
    try:
        found = schema_version(engine)
        if found is not None and found > SCHEMA:
            raise _other_schema(url, found)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with engine.begin() as connection:  # holds SQLite's write lock, so the others wait and then find the tables
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (SQLAlchemyError, CommandError) as err:
        cause = (str(getattr(err, "orig", None) or err).splitlines() or [""])[0]
        raise StoreUnavailable(f"the catalog {hide_secrets(url)} cannot be upgraded: {cause}") from err
    finally:
        engine.dispose()
    return SCHEMA


def set_aside_damaged(url: str) -> list[Path]:
    """Rename an SQLite catalog that cannot be read, with its write-ahead log, so that a new one can be made.

    Returns:
        The new names; none if the catalog is whole, absent or not a file.
    """
    database = sa.make_url(url).database if url.startswith("sqlite:") else None
    if not database or not Path(database).is_file():
        return []
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_S)) as connection:
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return []
    except sqlite3.OperationalError as err:  # locked, or no access: not damaged as far as we know
        raise StoreUnavailable(f"the catalog {database} cannot be used: {err}") from err
    except sqlite3.DatabaseError as err:
        log.warning("the catalog %s is damaged: %s", database, err)
    return keep_aside(database, "damaged")


def keep_aside(database: str, why: str) -> list[Path]:
    """Rename an SQLite file with its write-ahead log; returns the new names."""
    mark = f".{why}-{uuid.uuid4().hex[:8]}"
    # the log first: one left behind would be played into a new database
    parts = [Path(database + end) for end in ("-wal", "-shm", "") if Path(database + end).is_file()]
    return [part.rename(database + mark + part.name.removeprefix(Path(database).name)) for part in parts]


def _other_schema(url: str, found: str) -> StoreUnavailable:
    advice = (
        "run `nowcast catalog upgrade`" if found < SCHEMA else "it was made by a newer version of nowcast, use that one"
    )
    return StoreUnavailable(f"the catalog {hide_secrets(url)} has schema {found}, this version uses {SCHEMA}; {advice}")


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError as err:
        raise StoreUnavailable(f"catalog = {hide_secrets(url)!r} is not a database URL such as sqlite:///file") from err
    if parsed.get_backend_name() != "sqlite":
        try:
            return sa.create_engine(parsed, pool_pre_ping=True)
        except (ImportError, SQLAlchemyError) as err:
            raise StoreUnavailable(f"the catalog {hide_secrets(url)} cannot be used: {err}") from err
    if parsed.database:
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StoreUnavailable(f"the folder of the catalog {parsed.database} cannot be made: {err}") from err
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        # our own BEGIN below; the driver's would be a deferred one, under which concurrent writers lose updates
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _database_now(connection: sa.Connection) -> float:
    clock = (
        "SELECT (julianday('now') - 2440587.5) * 86400.0"
        if connection.dialect.name == "sqlite"
        else "SELECT extract(epoch FROM clock_timestamp())"
    )
    return float(connection.execute(sa.text(clock)).scalar_one())


def _machine() -> str:
    """Where a process id means something: the host and, since containers may share its name, the id namespace."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}"


def _ended_here(owner: str) -> bool:
    """Whether the owner was a process of this machine that no longer runs."""
    machine, _, pid = owner.rpartition(":")
    if machine != _machine() or not pid.isdigit():
        return False
    return not process_lives(int(pid))

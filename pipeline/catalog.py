"""What exists and in what state: volumes, frames, cycles, score files, leases. SQL through SQLAlchemy Core.

SQLite is embedded, for one machine; PostgreSQL serves several (``pipeline.database``). Times are whole seconds since
1970 (instants of the axis) or floats (wall clock).
"""

import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from pipeline import database, processes
from pipeline.errors import BadInput, LeaseLost, StoreUnavailable
from pipeline.settings import hide_secrets

log = logging.getLogger(__name__)

SCHEMA = "0004"
LEASE_S = 30.0
# so long after its end a lease that nobody gave back is forgotten
FORGOTTEN_S = 3600.0
# between two looks at a lease that another process holds
LOOK_S = 0.2
# an upgrade may move large tables, and others wait for it
UPGRADE_S = 600.0
# a volume in one of these states is looked at again by a later ingest
RETRIED = ("future", "unreadable")
# forecasts: live, later, or live beside those that are issued, by a challenger
KINDS = ("issued", "hindcast", "shadow")

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
        # framed, partial, duplicate, off_axis, left_alone, future, unreadable; quarantined until somebody has looked at
        # it, then reviewed, or dropped if its bytes are gone (pipeline.quarantine)
        "state": sa.String(20),
        "reason": sa.Text,
        "radar": sa.String(40),
        "slot": sa.BigInteger,  # instant of the frame that a polar volume belongs to; 0 for others
        "measured_until": sa.Float,  # last sweep; 0 if it is not known
        "seen_at": sa.Float,  # when an ingest looked at it
    },
)
# every poll and every status asks for those of some hours, of millions
sa.Index("volumes_nominal_time", volumes.c.domain, volumes.c.nominal_time)
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
        "model": sa.String(200),
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
        "settled_until": sa.BigInteger,  # every instant before it was forecast or given up
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
# trained models that serve a domain, or run beside (pipeline.promotion); ended_at is 0 while it stands
promotions = _table(
    "promotions",
    {"domain": sa.String(40), "name": sa.String(80), "role": sa.String(10), "since": sa.Float},
    {
        "ended_at": sa.Float,
        "checksum": sa.String(64),
        "instead_of": sa.String(512),  # the model of the settings whose place it takes
        "reason": sa.Text,
        "evidence": sa.String(512),  # path of what shows it, below the root
    },
)
leases = _table(
    "leases",
    {"name": sa.String(200)},
    {"owner": sa.String(120), "token": sa.String(32), "expires_at": sa.Float},
)

Row = dict[str, Any]


class Catalog:
    """One connection pool to the catalog.

    Args:
        url: of the database.
        reading: make and change nothing. An SQLite file that does not exist yet then reads as one without rows, and one
            in a folder that may not be written can be read.

    Raises:
        StoreUnavailable: it cannot be reached, or has another schema version.
    """

    def __init__(self, url: str, reading: bool = False) -> None:
        self.url = url
        with self._reachable():
            if reading and not database.exists(url):
                self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
                metadata.create_all(self.engine)
                return
            self.engine = database.engine(url, reading=reading)
            self._check_schema(reading)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def write(self, scope: str = "") -> Iterator[sa.Connection]:
        """One writing transaction, which others of the same scope wait for; what it reads nobody changes meanwhile.

        The scope is the name of the domain whose rows, and whose files beside them, are read and written; leases have
        ``lease/NAME``. Without a scope every other writer waits: only for what concerns several domains. SQLite has one
        writer whatever the scope (BEGIN IMMEDIATE), PostgreSQL one for each.
        """
        with self._reachable(), self.engine.begin() as connection:
            database.exclude(connection, scope)
            yield connection

    def read(self, query: Any) -> list[Row]:
        """Rows of a query as dictionaries."""
        with self._reachable(), self.engine.connect().execution_options(reading=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Iterable[Row]) -> None:
        """Insert rows, or replace the values of those whose key exists.

        Raises:
            BadInput: a text is longer than its column.
        """
        rows = [{k: writable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
        if not rows:
            return
        if reason := next(filter(None, (misfit(table, row) for row in rows)), ""):
            raise BadInput(reason)
        insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
        keys = [c.name for c in table.primary_key]
        values = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=values), rows)

    @contextmanager
    def lease(self, name: str, patience_s: float = 0.0) -> Iterator["Lease | None"]:
        """Hold the lease ``name`` while the block runs; None if another process keeps it for ``patience_s``."""
        latest = time.monotonic() + patience_s
        while True:
            with self.leases([name]) as held:
                if held or time.monotonic() >= latest:
                    yield held.get(name)
                    return
            time.sleep(LOOK_S)

    @contextmanager
    def leases(self, names: Sequence[str]) -> Iterator[dict[str, "Lease"]]:
        """Hold those of the leases that are free, by name, while the block runs.

        A thread renews them, so a long block keeps them and a killed process loses them after ``LEASE_S``.
        """
        held = _acquire(self, [Lease(self, name) for name in names])
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(LEASE_S / 6):
                try:
                    _renew(self, held)
                except StoreUnavailable as err:
                    log.warning("the lease %s could not be renewed, trying again: %s", held[0].name, err)

        keeper = threading.Thread(target=renew, name="leases", daemon=True)
        if held:
            keeper.start()
        try:
            yield {lease.name: lease for lease in held}
        finally:
            if held:
                stop.set()
                keeper.join()
                _release(self, held)

    def held_leases(self) -> list[Row]:
        """Leases in force by the database's clock: ``name``, and ``host`` and ``process`` of who holds it."""
        with self._reachable(), self.engine.connect().execution_options(reading=True) as connection:
            query = sa.select(leases).where(leases.c.expires_at > database.now(connection)).order_by(leases.c.name)
            rows = connection.execute(query).mappings().all()
        owners = [(row["name"], *row["owner"].rpartition(":")[::2]) for row in rows if not _ended_here(row["owner"])]
        return [{"name": name, "host": on.partition("/")[0], "process": pid} for name, on, pid in owners]

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as err:
            cause = database.cause(err)
            if type(getattr(err, "orig", None)) is sqlite3.DatabaseError:  # what SQLite raises for a damaged file
                cause += "; `nowcast catalog rebuild` keeps it aside and makes a new one from the stores"
            raise StoreUnavailable(f"the catalog {hide_secrets(self.url)} cannot be used: {cause}") from err

    def _check_schema(self, reading: bool) -> None:
        found = schema_version(self.engine)
        if found is None and reading:
            raise StoreUnavailable(f"the catalog {hide_secrets(self.url)} has no tables; `nowcast catalog upgrade`")
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
        self.lost = False
        self.owner = f"{processes.machine()}:{os.getpid()}"

    def acquire(self) -> bool:
        """Take the lease if it is free, expired, or held by a process of this machine that has ended."""
        return bool(_acquire(self.catalog, [self]))

    def renew(self) -> bool:
        """Move the expiry; False if the lease was lost."""
        _renew(self.catalog, [self])
        return not self.lost

    def check(self, connection: sa.Connection) -> None:
        """Inside the publishing transaction: the lease is still ours, and is not taken before that ends.

        Raises:
            LeaseLost: it expired and another process took it.
        """
        if connection.execute(sa.select(leases.c.name).where(self._mine()).with_for_update()).first() is None:
            raise LeaseLost(f"the lease {self.name} was taken over by another process; nothing was recorded")

    def release(self) -> None:
        """Give it back; a lease lost meanwhile is left alone."""
        _release(self.catalog, [self])

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(leases.c.name == self.name, leases.c.token == self.token)


@contextmanager
def _writing_leases(catalog: Catalog, wanted: Sequence[Lease]) -> Iterator[sa.Connection]:
    """One transaction for several leases, each of which nobody else takes meanwhile."""
    first, *others = sorted(f"lease/{lease.name}" for lease in wanted)  # in one order, so that two never wait in a ring
    with catalog.write(first) as connection:
        for scope in others:
            database.exclude(connection, scope)
        yield connection


def _acquire(catalog: Catalog, wanted: Sequence[Lease]) -> list[Lease]:
    """Take those that are free, expired, or held by a process of this machine that has ended."""
    if not wanted:
        return []
    with _writing_leases(catalog, wanted) as connection:
        now = database.now(connection)
        query = sa.select(leases).where(leases.c.name.in_([lease.name for lease in wanted]))
        held = {row["name"] for row in connection.execute(query).mappings()
                if row["expires_at"] > now and not _ended_here(row["owner"])}  # fmt: skip
        taken = [lease for lease in wanted if lease.name not in held]
        expiry = {"expires_at": now + LEASE_S}
        rows = [{"name": lease.name, "owner": lease.owner, "token": lease.token, **expiry} for lease in taken]
        catalog.upsert(connection, leases, rows)
        # left by killed processes; nobody asks for most of them again
        connection.execute(sa.delete(leases).where(leases.c.expires_at < now - FORGOTTEN_S))
    return taken


def _renew(catalog: Catalog, held: Sequence[Lease]) -> None:
    """Move the expiry of those that are still ours; the others are lost."""
    with _writing_leases(catalog, held) as connection:
        expiry = database.now(connection) + LEASE_S
        for lease in held:
            mine = sa.update(leases).where(lease._mine()).values(expires_at=expiry)
            lease.lost = connection.execute(mine).rowcount != 1


def _release(catalog: Catalog, held: Sequence[Lease]) -> None:
    with _writing_leases(catalog, held) as connection:
        for lease in held:
            connection.execute(sa.delete(leases).where(lease._mine()))


def writable(text: str) -> str:
    """A text from outside as every database takes it: NUL, and bytes of a name that are no UTF-8, become escapes."""
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()


def misfit(table: sa.Table, row: Row) -> str:
    """Which text of a row its column cannot hold, in words; empty if all fit. SQLite would hold it, PostgreSQL not."""
    for column in table.columns:
        limit, value = getattr(column.type, "length", None), row.get(column.name)
        if not isinstance(value, str):
            continue
        shown = f"{column.name} {writable(value[:60])!r}"
        if column.primary_key and value != writable(value):
            return f"{shown} has characters that a catalog cannot hold"
        if limit is not None and len(value) > limit:
            return f"{shown}... has {len(value)} characters, the catalog takes {limit} ({table.name})"
    return ""


def from_seconds(value: float) -> datetime:
    """A time column as an aware datetime."""
    return datetime.fromtimestamp(value, UTC)


def leases_held(connection: sa.Connection) -> list[Row]:
    """Leases that somebody holds now."""
    rows = connection.execute(sa.select(leases).where(leases.c.expires_at > database.now(connection))).mappings()
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

    engine = database.engine(url, UPGRADE_S)
    try:
        found = schema_version(engine)
        if found is not None and not _ours_or_older(found):
            raise _other_schema(url, found)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with engine.begin() as connection:
            database.exclude(connection, "")  # the others wait, and then find the tables
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (SQLAlchemyError, CommandError) as err:
        cause = database.cause(err) if isinstance(err, SQLAlchemyError) else str(err)
        raise StoreUnavailable(f"the catalog {hide_secrets(url)} cannot be upgraded: {cause}") from err
    finally:
        engine.dispose()
    return SCHEMA


def set_aside_damaged(url: str) -> list[Path]:
    """Rename an SQLite catalog that cannot be read, with its write-ahead log, so that a new one can be made.

    Returns:
        The new names; none if the catalog is whole, absent or not a file.
    """
    file = sa.make_url(url).database if url.startswith("sqlite:") else None
    if not file or not Path(file).is_file():
        return []
    try:
        with closing(sqlite3.connect(file, timeout=database.BUSY_S)) as connection:
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return []
    except sqlite3.OperationalError as err:  # locked, or no access: not damaged as far as we know
        raise StoreUnavailable(f"the catalog {file} cannot be used: {err}") from err
    except sqlite3.DatabaseError as err:
        log.warning("the catalog %s is damaged: %s", file, err)
    return keep_aside(file, "damaged")


def keep_aside(file: str, why: str) -> list[Path]:
    """Rename an SQLite file with its write-ahead log; returns the new names."""
    mark = f".{why}-{uuid.uuid4().hex[:8]}"
    # the log first: one left behind would be played into a new database
    parts = [Path(file + end) for end in ("-wal", "-shm", "") if Path(file + end).is_file()]
    return [part.rename(file + mark + part.name.removeprefix(Path(file).name)) for part in parts]


def _ours_or_older(found: str) -> bool:
    return found.isdigit() and found <= SCHEMA


def _other_schema(url: str, found: str) -> StoreUnavailable:
    if not found.isdigit():
        text = f"is the database of another program (its schema is {found}); give the catalog one of its own"
        return StoreUnavailable(f"the catalog {hide_secrets(url)} {text}")
    advice = (
        "run `nowcast catalog upgrade`" if found < SCHEMA else "it was made by a newer version of nowcast, use that one"
    )
    return StoreUnavailable(f"the catalog {hide_secrets(url)} has schema {found}, this version uses {SCHEMA}; {advice}")


def _ended_here(owner: str) -> bool:
    """Whether the owner was a process of this machine that no longer runs."""
    machine, _, pid = owner.rpartition(":")
    return processes.has_ended_here(machine, pid)

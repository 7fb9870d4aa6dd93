"""Connections to the catalog's database: SQLite on one machine, PostgreSQL for several. Every wait has an end."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import StoreUnavailable
from pipeline.settings import hide_secrets

if TYPE_CHECKING:
    import psycopg

# for a lock that another process holds
BUSY_S = 10.0
CONNECT_S = 5
# of a session that holds locks and does nothing: a process that was stopped, or a machine that has gone, must not keep
# the others waiting for ever; far longer than any of ours pauses inside a transaction
STOPPED_S = 60


def engine(url: str, busy_s: float = BUSY_S, reading: bool = False) -> sa.Engine:
    """Connection pool of a catalog; nothing is connected yet.

    Args:
        busy_s: how long a statement may wait for another process, or take.
        reading: nothing will be written; an SQLite file in a folder that may not be written is then read all the same.

    Raises:
        StoreUnavailable: the address is none that we can use.
    """
    shown = hide_secrets(url)
    try:
        parsed = sa.make_url(url)
    except (SQLAlchemyError, ValueError) as err:
        raise StoreUnavailable(
            f"catalog = {shown!r} is not a database URL such as sqlite:///file or postgresql://user@host/database"
        ) from err
    if parsed.drivername == "sqlite":
        return _sqlite(parsed, busy_s, reading)
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise StoreUnavailable(
            f"the catalog {shown} cannot be used: {parsed.drivername} is none of sqlite and postgresql+psycopg"
        )
    if "@" in (parsed.host or ""):
        raise StoreUnavailable(
            f"the catalog {shown} cannot be used: in a user or password, write @ as %40 and / as %2F"
        )
    return _postgresql(parsed.set(drivername="postgresql+psycopg"), busy_s)


def exists(url: str) -> bool:
    """Whether there is a database to read; of others than SQLite's files the connection will tell."""
    file = url.removeprefix("sqlite:///")
    if file == url or not file:
        return True
    try:
        return bool(os.stat(file))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # but out of reach, which the connection says better


def exclude(connection: sa.Connection, scope: str) -> None:
    """On PostgreSQL, wait until no other transaction of this scope is at work and keep others out until this one ends.

    Without a scope every other one is kept out. SQLite, which has one writer anyway, was locked at BEGIN.
    """
    if connection.dialect.name != "postgresql":
        return
    whole = _lock_number("")
    if scope:
        locks = sa.select(
            sa.func.pg_advisory_xact_lock_shared(whole), sa.func.pg_advisory_xact_lock(_lock_number(scope))
        )
    else:
        locks = sa.select(sa.func.pg_advisory_xact_lock(whole))
    connection.execute(locks)


def now(connection: sa.Connection) -> float:
    """The database's clock, in seconds since 1970; not that of the transaction's begin."""
    clock = (
        "SELECT (julianday('now') - 2440587.5) * 86400.0"
        if connection.dialect.name == "sqlite"
        else "SELECT extract(epoch FROM clock_timestamp())"
    )
    return float(connection.execute(sa.text(clock)).scalar_one())


def cause(err: SQLAlchemyError) -> str:
    """What the database said, in one line and without a password."""
    original = getattr(err, "orig", None)
    lines = [line.strip(" -") for line in str(original or err).splitlines()] or [type(err).__name__]
    if lines[0].startswith("Multiple connection attempts"):  # a name with several addresses: each has its own line
        lines = ["; ".join(lines[1:])]
    if getattr(original, "sqlstate", None) == "55P03":
        return "another process has been writing for too long (lock timeout)"
    return hide_secrets(lines[0])


def _lock_number(scope: str) -> int:
    """Advisory locks have numbers; those of other programs in the same database are others with near certainty."""
    return int.from_bytes(hashlib.sha256(f"nowcast catalog/{scope}".encode()).digest()[:8], "big", signed=True)


def _sqlite(url: sa.URL, busy_s: float, reading: bool) -> sa.Engine:
    if url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StoreUnavailable(f"the folder of the catalog {url.database} cannot be made: {err}") from err
    if reading and url.database and _is_still(Path(url.database)):
        uri = {"uri": "true", "mode": "ro", "immutable": "1"}
        url = url.set(database=f"file:{quote(url.database)}", query=uri)
    engine = sa.create_engine(url, connect_args={"timeout": busy_s})

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


def _is_still(file: Path) -> bool:
    """Whether a file can be read only as one that nobody writes: no place for the log that readers share, and none."""
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    return not writable and not Path(f"{file}-wal").exists()


def _postgresql(url: sa.URL, busy_s: float) -> sa.Engine:
    session = {
        "lock_timeout": round(1000 * busy_s),
        "statement_timeout": round(1000 * busy_s + 1000),
        "idle_in_transaction_session_timeout": 1000 * STOPPED_S,
        # of the server's end, so that it notices a client's machine that has gone and frees its locks
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
    }
    given = url.query.get("options", "")
    options = " ".join(
        [given if isinstance(given, str) else " ".join(given)] + [f"-c {k}={v}" for k, v in session.items()]
    )
    engine = sa.create_engine(
        url,
        connect_args={"connect_timeout": CONNECT_S, "application_name": "nowcast", "options": options.strip()},
        # what is read after the lock of `exclude` must be newer than the lock, whatever the server's default is
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_timeout=busy_s,
    )

    @sa.event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: Sequence[Any], options: dict[str, Any]) -> "psycopg.Connection":
        return _impatient(busy_s + 2).connect(*arguments, **options)

    return engine


def _impatient(patience_s: float) -> "type[psycopg.Connection]":
    """Connections that give up on a server which takes the question and does not answer: its timeouts do not help."""
    import psycopg

    class Impatient(psycopg.Connection):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, patience_s if timeout is None else timeout)
            except psycopg.errors._WaitTimeout as err:
                self.close()  # the answer may still come, and would be taken for that of the next question
                raise psycopg.OperationalError(f"the database did not answer within {patience_s:.0f} s") from err

    return Impatient

"""A PostgreSQL server for tests: on loopback, in a folder of its own, gone when the tests end."""

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "nowcast"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class PostgresServer:
    """A running server; ``process`` is its postmaster."""

    port: int
    password: str
    process: subprocess.Popen

    def url(self, database: str, password: str | None = None) -> str:
        """Address of a database on it."""
        return f"postgresql+psycopg://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Address of a fresh, empty database."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """Run one statement outside of a transaction, in the database ``postgres``."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)


def missing() -> str:
    """Why there can be no server here; empty if there can."""
    if _programs() is None:
        return "no PostgreSQL server (initdb and postgres, on PATH or below /usr/lib/postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL does not run as root, and there is neither a user postgres nor nobody"
    return ""


@contextmanager
def running() -> Iterator[PostgresServer]:
    """Start a server, and stop and remove it at the end; it ends too when this process is killed."""
    programs = _programs()
    assert programs is not None
    other = _other_user() if os.geteuid() == 0 else None
    as_other = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []} if other else {}
    # not below pytest's folders, which another user must not enter; and the path of a socket must be short
    folder = Path(tempfile.mkdtemp(prefix="nowcast-pg-"))
    process = None
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        if other:
            for path in (folder, folder / "password"):
                os.chown(path, other.pw_uid, other.pw_gid)
        line = [programs / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", "-N", "-E", "UTF8"]
        line += ["--no-locale", f"--pwfile={folder / 'password'}"]
        made = subprocess.run(line, capture_output=True, text=True, cwd=folder, **as_other)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        port = _free_port()
        line = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder]
        line += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]  # nothing here outlives the server
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                line, stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent, **as_other
            )
        server = PostgresServer(port, password, process)
        _wait_until_up(server, folder / "log")
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGQUIT)  # an immediate shutdown
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of the session."""
    if reason := missing():
        pytest.skip(reason)
    with running() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server) -> str:
    """Address of a fresh, empty database."""
    return postgres_server.new_database()


def _programs() -> Path | None:
    """The folder of initdb and postgres; of several versions the newest."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name.zfill(4), reverse=True)
    return next((f for f in found if (f / "initdb").is_file() and (f / "postgres").is_file()), None)


def _other_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _wait_until_up(server: PostgresServer, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return server.execute("SELECT 1")
        except psycopg.OperationalError as err:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {err}\n{log.read_text()}") from err
            time.sleep(0.05)

"""The catalog on PostgreSQL does what it does on SQLite, and every way in which a server fails is named in time."""

import dataclasses
import os
import signal
import threading
import time

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import database, ingest, operations
from pipeline.catalog import Catalog, Lease, misfit, upgrade, writable
from pipeline.errors import BadInput, LeaseLost, StoreUnavailable
from pipeline.holdings import holdings
from pipeline.rebuild import rebuild
from pipeline.settings import Settings, hide_secrets
from tests.conftest import NOW, synthetic_domain
from tests.pipeline.cycles import STEP, T0
from tests.soak import races

VOLUME = {
    "domain": "small", "key": "k", "etag": "e", "nominal_time": 0, "size": 1, "sha256": "", "arrived_at": 0.0,
    "state": "framed", "reason": "", "radar": "", "slot": 0,
}  # fmt: skip


@pytest.fixture
def catalog(postgres_url):
    catalog = Catalog(postgres_url)
    yield catalog
    catalog.close()


def volume(**changes):
    row = {c.name: 0 if isinstance(c.type, sa.BigInteger | sa.Float) else "" for c in tables.volumes.columns}
    return row | VOLUME | changes


def contents(catalog):
    """What two catalogs of the same work have in common: not when it was done."""
    f, c, s, v = tables.frames.c, tables.cycles.c, tables.scores.c, tables.volumes.c
    wanted = [
        sa.select(f.valid_time, f.sha256, f.source_key, f.offset_s, f.coverage, f.echo, f.removed),
        sa.select(
            c.reference_time, c.kind, c.revision, c.state, c.method, c.reason, c.path, c.content_digest,
            c.baselines_digest, c.inputs_digest, c.correlation, c.verified, c.observations_digest,
        ),
        sa.select(s),
        sa.select(v.key, v.etag, v.state, v.sha256, v.size),
    ]  # fmt: skip
    return [sorted(tuple(row.values()) for row in catalog.read(query)) for query in wanted]


def the_chain(root, url):
    """Ingest, issue, verify, report, status; then the catalog again from the stores."""
    domain = synthetic_domain(model="optical_flow")
    settings = Settings(root=root, catalog=url, domains={"small": domain})
    made = operations.backfill(settings, "small", T0, T0 + STEP, NOW)
    assert made.cycles == {"published": 2} and made.verify.scored == 2 and made.problems == []
    operations.run(settings, "small", T0 + 2 * STEP, T0 + 2 * STEP)  # an issued one, with latest.json
    written = operations.report(settings, "small", None, None, root / "report", NOW)
    store, catalog = operations.open_root(settings)
    before = contents(catalog)
    (counted,) = holdings(catalog, ["small"])
    rebuilt = rebuild([domain], store, catalog)
    after = contents(catalog)
    catalog.close()
    table = next(written.page.parent.glob("*.csv")).read_text()
    latest = (root / "products/small/latest.json").read_text()
    return before, after, counted, rebuilt, table, latest


def test_the_whole_chain_gives_the_same_on_both_databases(tmp_path, postgres_url, monkeypatch):
    monkeypatch.setattr("pipeline.verification.report._figures", lambda *arguments: [])
    monkeypatch.setattr("pipeline.verification.figures.case_maps", lambda *arguments: "")
    ours = the_chain(tmp_path / "postgresql", postgres_url)
    other = the_chain(tmp_path / "sqlite", f"sqlite:///{tmp_path / 'sqlite' / 'catalog.sqlite'}")
    for mine, theirs in zip(ours, other, strict=True):
        assert mine == theirs
    assert len(ours[0][1]) == 3  # there was something to compare


def test_who_cannot_connect_is_told_why_and_no_password(postgres_server, postgres_url):
    elsewhere = postgres_url.replace(f":{postgres_server.port}/", ":9/")
    password = postgres_server.password
    for url, said in (
        (elsewhere, "Connection refused"),
        (postgres_server.url("absent"), 'database "absent" does not exist'),
        (postgres_server.url("postgres", "mistaken"), "password authentication failed"),
        (postgres_url.replace("+psycopg", "+asyncpg"), "none of sqlite and postgresql"),
        (postgres_url.replace(password, "half@" + password), "write @ as %40"),
        (postgres_url.replace("127.0.0.1", "no.such.host.invalid"), "no.such.host.invalid"),
    ):
        with pytest.raises(StoreUnavailable, match="the catalog") as refused:
            Catalog(url)
        assert said in str(refused.value)
        assert password not in str(refused.value) and "mistaken" not in str(refused.value)
    assert "ab" not in hide_secrets("postgresql://u:ab@ab@h/x")


def test_an_address_without_a_driver_uses_psycopg(postgres_url):
    for begin in ("postgresql://", "postgres://"):
        catalog = Catalog(postgres_url.replace("postgresql+psycopg://", begin))
        assert catalog.engine.dialect.driver == "psycopg"
        catalog.close()


def test_a_server_that_takes_the_question_and_does_not_answer_is_given_up(postgres_url):
    engine = database.engine(postgres_url, 0.2)
    with engine.connect() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(sa.exc.OperationalError, match="did not answer within 2 s"):
                connection.execute(sa.text("SELECT 1"))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert time.monotonic() - began < 5
    with engine.connect() as connection:  # a fresh one
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_a_lost_connection_is_one_error_and_then_another_connection(catalog, postgres_server):
    with pytest.raises(StoreUnavailable, match="terminating connection"), catalog.write("a") as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        postgres_server.execute(f"SELECT pg_terminate_backend({pid})")
        time.sleep(0.1)
        catalog.upsert(connection, tables.volumes, [volume()])
    assert catalog.read(sa.select(tables.volumes)) == []


def enters(catalog, scope):
    """Begin a writing transaction in a thread; the event is set once it is in."""
    inside = threading.Event()

    def write():
        with catalog.write(scope):
            inside.set()

    threading.Thread(target=write, daemon=True).start()
    return inside


def test_writers_of_a_domain_exclude_each_other_and_others_go_on(catalog):
    with catalog.write("a"):
        waiting = [enters(catalog, "a"), enters(catalog, "a")]
        assert enters(catalog, "b").wait(5)
        assert not any(one.wait(0.2) for one in waiting)
    assert all(one.wait(5) for one in waiting)
    with catalog.write("a"):
        everything = enters(catalog, "")
        assert not everything.wait(0.2)
    assert everything.wait(5)
    with catalog.write():
        waiting = enters(catalog, "a")
        assert not waiting.wait(0.2)
    assert waiting.wait(5)


def test_a_lock_that_is_held_too_long_is_named(catalog):
    impatient = Catalog(catalog.url)
    impatient.engine = database.engine(catalog.url, 0.2)
    said = pytest.raises(StoreUnavailable, match="another process has been writing for too long")
    with catalog.write("a"), said, impatient.write("a"):
        raise AssertionError("both are in")
    impatient.engine.dispose()


def test_a_lease_is_not_taken_between_its_check_and_the_commit(catalog):
    mine, other = Lease(catalog, "x"), Lease(catalog, "x")
    assert mine.acquire()
    with catalog.write() as connection:  # as after a long pause
        connection.execute(sa.update(tables.leases).values(expires_at=1.0))
    taken = threading.Event()
    with catalog.write("small") as connection:
        mine.check(connection)
        threading.Thread(target=lambda: other.acquire() and taken.set(), daemon=True).start()
        assert not taken.wait(0.4)
        catalog.upsert(connection, tables.volumes, [volume()])
    assert taken.wait(5)
    assert len(catalog.read(sa.select(tables.volumes))) == 1
    with pytest.raises(LeaseLost), catalog.write("small") as connection:
        mine.check(connection)
    assert not mine.renew()
    mine.release()  # leaves the other's alone
    assert catalog.read(sa.select(tables.leases.c.token)) == [{"token": other.token}]


@pytest.mark.parametrize("ends", ["released", "expired"])
def test_who_waits_takes_a_lease_as_soon_as_it_ends(either_url, ends):
    catalog = Catalog(either_url)
    held = Lease(catalog, "x")
    assert held.acquire()
    begun = []

    def end():
        begun.append(time.monotonic())
        if ends == "released":
            held.release()
        else:
            with catalog.write() as connection:
                connection.execute(sa.update(tables.leases).values(expires_at=1.0))

    threading.Timer(0.3, end).start()
    with catalog.lease("x", patience_s=20) as lease:
        assert lease is not None and time.monotonic() - begun[0] < 2
    catalog.close()


def test_times_of_the_wall_clock_keep_their_microseconds(catalog):
    moment = 1732203123.123457
    with catalog.write("small") as connection:
        catalog.upsert(connection, tables.volumes, [volume(arrived_at=moment)])
    assert catalog.read(sa.select(tables.volumes.c.arrived_at)) == [{"arrived_at": moment}]
    with catalog.engine.connect() as connection:
        assert abs(database.now(connection) - time.time()) < 5


def test_text_that_a_column_cannot_hold(either_url):
    catalog = Catalog(either_url)
    with catalog.write("small") as connection:
        catalog.upsert(connection, tables.volumes, [volume(reason="a\0b \udcff" + "x" * 5000)])
    (row,) = catalog.read(sa.select(tables.volumes.c.reason))
    assert row["reason"].startswith("a\\x00b \\udcff") and row["reason"].endswith("xx")
    with (
        pytest.raises(BadInput, match=r"has 600 characters, the catalog takes 512"),
        catalog.write("small") as connection,
    ):
        catalog.upsert(connection, tables.volumes, [volume(key="y" * 600)])
    assert "cannot hold" in misfit(tables.volumes, {"key": "a\udcff"}) and writable("Zürich") == "Zürich"
    catalog.close()


def test_a_name_that_the_catalog_cannot_hold_stops_no_ingest(either_url, root, monkeypatch):
    settings = Settings(root=root, catalog=either_url, domains={"small": synthetic_domain()})
    real = ingest.open_source

    class WithLongName:
        def __init__(self, domain):
            self.source = real(domain)

        def list(self, start, end, warn):
            refs = list(self.source.list(start, end, warn))
            strange = [dataclasses.replace(refs[0], key=key) for key in ("k" * 600, "a\0b", "a\udcff")]
            return [*strange, dataclasses.replace(refs[0], key="long etag", etag="e" * 65), *refs]

        def __getattr__(self, name):
            return getattr(self.source, name)

    monkeypatch.setattr(ingest, "open_source", WithLongName)
    made = operations.ingest(settings, "small", T0, T0 + STEP, NOW).ingest
    assert made.framed == 2
    assert [key for key, _ in made.quarantined] == ["k" * 600, "a\\x00b", "a\\udcff", "long etag"]
    for (_, reason), said in zip(
        made.quarantined, ("takes 512", "cannot hold", "cannot hold", "takes 64"), strict=True
    ):
        assert said in reason


def test_the_database_of_another_program_is_left_alone(catalog):
    with catalog.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9e83011d1f2a'"))
    for use in (Catalog, upgrade):
        with pytest.raises(StoreUnavailable, match="another program"):
            use(catalog.url)


def test_a_stopped_process_loses_its_locks(catalog):
    with catalog.engine.connect() as connection:
        shown = connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one()
        assert shown == "1min" and database.STOPPED_S > tables.LEASE_S


def test_two_processes_at_one_cycle_leave_one_product(postgres_server):
    summary = races.run(6, 0, postgres_server, 7)
    assert summary.faults == [] and summary.races == 6

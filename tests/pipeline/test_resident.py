"""Who is at work: one live process, others stand by; and what is done beside it."""

import os
import threading
import time

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import resident, times
from pipeline.errors import NotAlive, StoreUnavailable
from pipeline.heartbeat import LIVE, check_alive
from pipeline.lookout import look
from tests.pipeline.test_live import RAIN, STEP, T0, Office
from tests.simulation import arrive, composite


def wait_until(true, seconds=60.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


@pytest.fixture
def office(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, "STAND_BY_S", 0.1)
    monkeypatch.setattr(resident, "WAIT_S", 0.1)
    monkeypatch.setattr(tables, "LEASE_S", 1.2)
    office = Office(tmp_path)
    live = office.settings.live.model_copy(update={"ingest_processes": 0, "poll_s": 0.2})
    office.settings = office.settings.model_copy(update={"live": live})
    return office


def put(office, time):
    arrive(office.folder / "small" / f"{times.compact(time)}.h5", composite(RAIN, time, office.folder))(time)


@pytest.fixture
def running(office):
    """The live process in a thread; the batches that it did."""
    stop, batches = threading.Event(), []
    thread = threading.Thread(
        target=resident.run_live, args=(office.settings, office.clock, stop), kwargs={"after": batches.append}
    )
    yield thread, batches
    stop.set()
    if thread.is_alive():
        thread.join(30)
    assert not thread.is_alive()


def test_one_stands_by_until_the_other_is_gone_and_leaves_when_it_lost_its_lease(office, running):
    thread, batches = running
    put(office, T0)
    office.clock.set(T0 + STEP / 5)
    with office.catalog.lease(LIVE):
        thread.start()
        time.sleep(1.5)
        assert batches == []
        with pytest.raises(NotAlive, match="not looked at a feed yet"):
            check_alive(office.catalog, office.clock.now())
    wait_until(lambda: batches)
    assert [o.state for o in batches[0]] == ["published"]
    check_alive(office.catalog, office.clock.now())
    # somebody else took the lease, as after a pause of this process
    taken = {"token": "of another", "owner": "elsewhere:1", "expires_at": time.time() + 3600}
    with office.catalog.write() as connection:
        connection.execute(sa.update(tables.leases).where(tables.leases.c.name == LIVE).values(taken))
    time.sleep(2.0)
    put(office, T0 + STEP)
    office.clock.set(T0 + STEP + STEP / 5)
    time.sleep(1.5)
    assert len(batches) == 1
    with office.catalog.write() as connection:
        connection.execute(sa.delete(tables.leases).where(tables.leases.c.name == LIVE))
    wait_until(lambda: len(batches) == 2)


def test_a_failure_of_the_store_is_waited_for(office, running, monkeypatch):
    thread, batches = running
    put(office, T0)
    office.clock.set(T0 + STEP / 5)
    real, failed = resident.Live.step, []

    def fails_twice(self):
        if len(failed) < 2:
            failed.append(self)
            raise StoreUnavailable("the disk is away")
        return real(self)

    monkeypatch.setattr(resident.Live, "step", fails_twice)
    thread.start()
    wait_until(lambda: batches)
    assert failed[0] is failed[1]  # what was loaded stayed


def test_a_look_does_all_it_can(office, monkeypatch):
    def breaks(*arguments):
        raise TypeError("a bug")

    monkeypatch.setattr("pipeline.lookout.alerts.check", breaks)
    look(office.settings, office.store, office.catalog, office.clock)
    assert (office.settings.root / "status/index.html").is_file()


def test_one_that_hangs_ends_and_says_where(office, monkeypatch, capfd):
    live = office.settings.live.model_copy(update={"stuck_after_s": 1.0})
    settings = office.settings.model_copy(update={"live": live})

    def hang_on_the_line(live, lookout):
        time.sleep(60)

    monkeypatch.setattr(resident, "_step", hang_on_the_line)
    child = os.fork()
    if child == 0:
        try:
            resident.run_live(settings, office.clock, threading.Event())
        finally:
            os._exit(0)
    started = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 1 and time.monotonic() - started < 30
    assert "hang_on_the_line" in capfd.readouterr().err

"""The live process after thirty days of pause, twenty domains: the first look, and the record of what was missed."""

import time
from datetime import timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.intake import Polled
from pipeline.live import Live
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.simulation import SimulatedClock

DOMAINS, PAUSE = 20, timedelta(days=30)


class Nothing:
    """Feeds that have nothing new."""

    def __init__(self):
        self.done = []

    def begin(self, domain, start, end, now):
        self.done.append(Polled(domain.name, start, end, None))

    def is_busy(self, domain):
        return False

    def finished(self):
        done, self.done = self.done, []
        return done

    def close(self):
        pass


def test_after_a_pause_of_thirty_days(tmp_path):
    names = [f"d{n:02}" for n in range(DOMAINS)]
    settings = settings_for(tmp_path, *(synthetic_domain(name, model="last_frame") for name in names))
    store, catalog = Store(settings.root), Catalog(settings.catalog)
    since = times.seconds(times.first_slot(NOW - PAUSE, timedelta(minutes=10)))
    row = {"since": since, "settled_until": since, "polled_at": float(since), "fault_at": 0.0, "fault": ""}
    inputs = '[{"radar": "a"}, {"radar": "b"}]'
    frame = {c.name: "" if isinstance(c.type, sa.String | sa.Text) else 0 for c in tables.frames.columns}
    with catalog.write() as connection:
        catalog.upsert(connection, tables.feeds, [{"domain": name, **row} for name in names])
        for name in names:  # what a neighbour has taken in meanwhile
            instants = range(since, since + int(PAUSE.total_seconds()), 600)
            rows = [
                {**frame, "domain": name, "valid_time": t, "inputs": inputs, "framed_at": t + 60.0} for t in instants
            ]
            catalog.upsert(connection, tables.frames, rows)
    clock, steps = SimulatedClock(NOW), []
    live = Live(settings, store, catalog, clock, Nothing())
    while not steps or any(feed.missed for feed in live.feeds):
        started = time.perf_counter()
        live.step()
        steps.append(time.perf_counter() - started)
        clock.set(clock.now() + timedelta(milliseconds=20))
    count = catalog.read(sa.select(sa.func.count().label("n")).select_from(tables.cycles))[0]["n"]
    again = time.perf_counter()
    live.step()
    print(
        f"\n  {DOMAINS} domains, {PAUSE.days} days: first look {steps[0]:.2f} s, {count} cycles on record after "
        f"{sum(steps):.1f} s in {len(steps)} steps of at most {max(steps[1:]):.2f} s; a look then takes "
        f"{1000 * (time.perf_counter() - again):.0f} ms"
    )
    assert count >= DOMAINS * 30 * 144 - DOMAINS

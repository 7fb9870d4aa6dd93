"""A catalog as live operation leaves it, written row by row: for the tests of status and alerts."""

import json
from contextlib import contextmanager
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog

NOW = datetime.fromisoformat("2026-03-01T12:06:00+00:00")
STEP = timedelta(minutes=10)
AXIS = NOW.replace(minute=0)  # the newest instant


class Live:
    """Rows of one domain; an instant is a number of cycles before the newest one, 12:00."""

    def __init__(self, catalog: Catalog, domain: str = "small") -> None:
        self.catalog, self.domain = catalog, domain
        self.held: list[tuple[sa.Table, dict]] | None = None

    @contextmanager
    def at_once(self):
        """What the block writes is one transaction."""
        self.held = []
        yield
        with self.catalog.write() as connection:
            for table, row in self.held:
                self.catalog.upsert(connection, table, [row])
        self.held = None

    def write(self, table: sa.Table, **row) -> None:
        plain = {c.name: "" if isinstance(c.type, sa.String | sa.Text) else 0 for c in table.columns}
        row = {**plain, "domain": self.domain, **row}
        if self.held is not None:
            self.held.append((table, row))
            return
        with self.catalog.write() as connection:
            self.catalog.upsert(connection, table, [row])

    def feed(self, since: int = 300, polled: datetime = NOW, fault: str = "", fault_at: datetime = NOW) -> None:
        at = fault_at.timestamp() if fault else 0.0
        first = times.seconds(AXIS - since * STEP)
        self.write(
            tables.feeds, since=first, settled_until=first, polled_at=polled.timestamp(), fault_at=at, fault=fault
        )

    def volume(self, before: int, radar: str = "alfa", arrives_s: float = 40, ends_s: float = 10, **changes) -> str:
        time = AXIS - before * STEP
        key = f"{radar}-{times.compact(time)}"
        row = {
            "key": key,
            "etag": "e",
            "nominal_time": times.seconds(time),
            "arrived_at": time.timestamp() + arrives_s,
            "measured_until": time.timestamp() + ends_s,
            "state": "framed",
            "radar": radar,
            "slot": times.seconds(time),
        }
        self.write(tables.volumes, **{**row, **changes})
        return key

    def frame(self, before: int, *radars: str, framed_s: float = 45, arrives_s: float = 40) -> None:
        time = AXIS - before * STEP
        inputs = [{"radar": r, "key": self.volume(before, r, arrives_s), "etag": "e", "carried": False} for r in radars]
        self.write(
            tables.frames,
            valid_time=times.seconds(time),
            arrived_at=time.timestamp() + arrives_s,
            framed_at=time.timestamp() + framed_s,
            inputs=json.dumps(inputs),
        )

    def issued(self, before: int, method: str = "convlstm", reason: str = "", after_s: float = 50, **changes) -> None:
        time = AXIS - before * STEP
        row = {
            "reference_time": times.seconds(time),
            "kind": "issued",
            "revision": 1,
            "state": "published",
            "method": method,
            "reason": reason,
            "model_checksum": "" if reason else "ab" * 32,
            "correlation": 0.7,
            "issue_time": time.timestamp() + after_s,
            "stages": json.dumps({"read": 0.5, "forecast": 2.0, "write": 1.0}),
        }
        self.write(tables.cycles, **{**row, **changes})

    def skipped(self, before: int, reason: str = "") -> None:
        time = times.iso(AXIS - before * STEP)
        reason = reason or f"no frame at the reference time {time}"
        self.issued(before, "", reason, state="skipped", correlation=None, stages="", model_checksum="")

    def good_day(self, *radars: str, until: int = 0) -> None:
        """A day of forecasts by the model, the newest ``until`` cycles ago."""
        with self.at_once():
            self.feed()
            for before in range(until, 144):
                self.frame(before, *(radars or ("alfa",)))
                self.issued(before)

"""Makes the files of verification sums: which stand, which forecasts of one are scored, and how it is replaced."""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Lease, Row
from pipeline.domain import Domain
from pipeline.errors import BadInput, DamagedFrame, LeaseLost, NotForecast, NowcastError, reason_of
from pipeline.frames.archive import Archive
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import Frame
from pipeline.ingest import forget_damaged
from pipeline.storage import Store
from pipeline.verification import compared, files
from pipeline.verification.place_records import ObservedPlaces
from pipeline.verification.rules import pixel_tables, rules_of
from pipeline.verification.scoring import Compared, Scorer

log = logging.getLogger(__name__)

# scoring the forecasts of a day takes seconds to minutes
LEASE_PATIENCE_S = 600.0


@dataclass
class VerifyResult:
    """What one verification did."""

    scored: int = 0
    unchanged: int = 0
    waiting: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Due:
    """A forecast whose sums may have to be made.

    Attributes:
        label: what to call it in a message.
        digest: of all that its sums depend on.
        load: reads it and what it is compared with.
        row: of the catalog, to be marked; None for a forecast of somebody else.
    """

    reference_time: datetime
    label: str
    digest: str
    load: Callable[[], list[Compared]]
    row: Row | None = None


@dataclass(frozen=True)
class Target:
    """One file of sums.

    Attributes:
        kind: issued, hindcast or external.
        key: name under which its forecasts are scored together.
        methods: that are compared.
    """

    path: Path
    kind: str
    key: str
    methods: list[str]


class Observations:
    """Frames of a domain as observations, each read once while neighbouring forecasts need it."""

    def __init__(self, domain: Domain, archive: Archive, catalog: Catalog) -> None:
        self.domain, self.archive, self.catalog = domain, archive, catalog
        self._kept: OrderedDict[datetime, Frame | None] = OrderedDict()

    def of(self, reference_time: datetime) -> list[Frame | None]:
        """The frame of each lead time; None where none came."""
        return [self.read(time) for time in valid_times(self.domain, reference_time)]

    def read(self, time: datetime) -> Frame | None:
        """The frame of an instant; None where none came, or its object is damaged."""
        if time not in self._kept:
            try:
                self._kept[time] = self.archive.read(time)
            except DamagedFrame as err:
                log.warning("%s", err)
                forget_damaged(self.archive, self.catalog, self.domain, time)
                self._kept[time] = None
            while len(self._kept) > 2 * self.domain.lead_frames + 8:
                self._kept.popitem(last=False)
        return self._kept[time]


class SumsFiles:
    """Makes the files of sums of one domain by one set of rules; what was done is added to ``result``."""

    def __init__(
        self,
        domain: Domain,
        store: Store,
        catalog: Catalog,
        archive: Archive,
        source: FrameSource,
        result: VerifyResult,
    ) -> None:
        self.domain, self.store, self.catalog, self.archive = domain, store, catalog, archive
        self.rules, self.result = rules_of(domain, source), result
        self._scorer = Scorer(self.rules, pixel_tables(domain, self.rules))
        self._observations = Observations(domain, archive, catalog)
        self._places = ObservedPlaces(domain, source, self._observations.read)
        self._rules_json = self.rules.to_json()

    def due(self, row: Row, checksums: dict[int, str]) -> Due | None:
        """A published forecast; None if no observation of it has arrived."""
        time = tables.from_seconds(row["reference_time"])
        methods = compared.methods_of(row, self.domain)
        digest = self.digest([row["content_digest"], row["baselines_digest"]], methods, time, checksums)
        if digest is None:
            return None
        load = lambda: compared.of_product(self.domain, self.store, self.archive, row)  # noqa: E731
        return Due(time, row["path"], digest, load, row)

    def digest(self, forecasts: list[str], methods: list[str], time: datetime, checksums: dict[int, str]) -> str | None:
        """What the sums of a forecast depend on; None if no observation has arrived."""
        found = [checksums.get(times.seconds(valid), "") for valid in valid_times(self.domain, time)]
        if not any(found):
            return None
        content = [forecasts, methods, self._rules_json, found]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def score(
        self, target: Target, due: list[Due], everything: Callable[[], list[Due]], progress: Callable[[int], None]
    ) -> None:
        """Score what is due of one file and replace it.

        Args:
            everything: gives all forecasts that belong in the file, if it was lost or damaged, or made for other
                methods or by other rules.
        """
        name = self.store.relative(target.path)
        with self.catalog.lease(f"scores/{name}", LEASE_PATIENCE_S) as lease:
            if lease is None:
                self.result.failed.append((name, "another process works on these scores"))
                return
            standing = self._standing(target)
            items = everything() if standing is None and self._was_made(name) else due
            made, marked = self._sums(items, target, standing, progress)
            try:
                if made:
                    self._replace(target, standing, made, marked, lease)
                elif marked:  # all of it stands; perhaps the catalog had forgotten
                    assert standing is not None
                    row = self._file_row(target, marked[0]["reference_time"], str(standing.attrs["content_digest"]))
                    with self.catalog.write(self.domain.name) as connection:
                        self.catalog.upsert(connection, tables.scores, [row])
                        _mark(connection, marked)
            except LeaseLost as err:
                self.result.failed.append((name, str(err)))

    def recorded_digests(self) -> dict[str, str]:
        """Path -> content digest of every file of sums of the domain that the catalog knows."""
        s = tables.scores.c
        rows = self.catalog.read(sa.select(s.path, s.content_digest).where(s.domain == self.domain.name))
        return {row["path"]: row["content_digest"] for row in rows}

    def _standing(self, target: Target) -> xr.Dataset | None:
        """The file as it is, if it was made for the same methods by the same rules."""
        try:
            data = files.read(self.store.get(target.path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as err:
            log.warning("the scores %s are damaged, or of another format, and are made again: %s", target.path, err)
            return None
        wanted = {"methods": " ".join(target.methods), "rules": self._rules_json}
        fits = all(data.attrs.get(key) == value for key, value in wanted.items())
        return data if fits else None

    def _was_made(self, name: str) -> bool:
        """Whether the catalog knows a file of that name: then others than those asked for belong in it."""
        query = sa.select(tables.scores.c.path).where(tables.scores.c.path == name)
        return bool(self.catalog.read(query))

    def _sums(
        self, items: Iterable[Due], target: Target, standing: xr.Dataset | None, progress: Callable[[int], None]
    ) -> tuple[list[files.ForecastSums], list[Row]]:
        """Sums of the forecasts that do not stand already, and the catalog rows of all that are verified now."""
        known = {} if standing is None else files.digests(standing)
        made, marked = [], []
        for n, item in enumerate(items):
            progress(n)
            observations = self._observations.of(item.reference_time)
            if known.get(times.seconds(item.reference_time)) == item.digest:
                self.result.unchanged += 1
            else:
                try:
                    made.append(self._of_forecast(item, target.methods, observations))
                except (OSError, ValueError, KeyError, BadInput, NotForecast) as err:
                    log.warning("cannot verify %s: %s", item.label, err)
                    self.result.failed.append((item.label, str(err)))
                    continue
                except NowcastError:
                    raise
                except Exception as err:  # of this forecast; the others go on
                    log.exception("cannot verify %s", item.label)
                    self.result.failed.append((item.label, reason_of(err)))
                    continue
            if item.row is not None:
                marked.append(item.row | self._verdict(item, observations))
        return made, marked

    def _of_forecast(self, item: Due, methods: list[str], observations: list[Frame | None]) -> files.ForecastSums:
        forecasts = item.load()
        if [one.name for one in forecasts] != methods:
            found = ", ".join(one.name for one in forecasts)
            raise ValueError(f"{item.label} holds {found}, expected {', '.join(methods)}")
        sums = self._scorer.sums(forecasts, observations)
        records = {}
        if item.row is not None and self._places.places:
            records = self._places.records(self.store, self.store.root / item.row["path"], item.reference_time)
        return files.ForecastSums(times.seconds(item.reference_time), item.digest, sums, records)

    def _replace(
        self,
        target: Target,
        standing: xr.Dataset | None,
        made: list[files.ForecastSums],
        marked: list[Row],
        lease: Lease,
    ) -> None:
        merged = files.merge(standing, files.to_dataset(made, target.methods, self.rules))
        with self.store.new_file(target.path) as temporary:
            row = self._file_row(target, made[0].reference_time, files.write(merged, temporary))
            with self.catalog.write(self.domain.name) as connection:
                lease.check(connection)
                self.store.put(temporary, target.path)
                self.catalog.upsert(connection, tables.scores, [row])
                _mark(connection, marked)
        self.result.scored += len(made)
        self.result.files.append(row["path"])

    def _file_row(self, target: Target, reference_time: int, content_digest: str) -> Row:
        return {
            "path": self.store.relative(target.path),
            "domain": self.domain.name,
            "kind": target.kind,
            "model": target.key,
            "day": times.seconds(times.day_of(tables.from_seconds(reference_time))),
            "content_digest": content_digest,
        }

    def _verdict(self, item: Due, observations: list[Frame | None]) -> Row:
        missing = [
            times.iso(valid)
            for valid, frame in zip(valid_times(self.domain, item.reference_time), observations, strict=True)
            if frame is None
        ]
        return {
            "verified": "partly" if missing else "fully",
            "verified_reason": f"no observation at {', '.join(missing)}" if missing else "",
            "observations_digest": item.digest,
        }

    def mark(self, rows: list[Row]) -> None:
        """Record what became of forecasts."""
        with self.catalog.write(self.domain.name) as connection:
            _mark(connection, rows)


def _mark(connection: sa.Connection, rows: list[Row]) -> None:
    """Only what verification found: the rest of the row may have changed since it was read."""
    c = tables.cycles.c
    for row in rows:
        this = [c[key] == row[key] for key in ("domain", "reference_time", "kind", "revision")]
        found = {key: row[key] for key in ("verified", "verified_reason", "observations_digest")}
        connection.execute(sa.update(tables.cycles).where(*this).values(found))


def published(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> list[Row]:
    """Rows of the forecasts with a reference time in [start, end].

    Of reissued ones the first, which is what its users had; later ones know more, and would flatter.
    """
    c = tables.cycles.c
    inside = c.reference_time.between(times.seconds(start), times.seconds(end))
    query = sa.select(tables.cycles).where(c.domain == domain.name, c.state == "published", c.revision == 1, inside)
    return catalog.read(query.order_by(c.reference_time, c.kind))


def frame_checksums(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> dict[int, str]:
    """SHA-256 of every frame that a forecast with a reference time in [start, end] may be scored against."""
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end + domain.horizon))
    rows = catalog.read(sa.select(f.valid_time, f.sha256).where(f.domain == domain.name, inside))
    return {row["valid_time"]: row["sha256"] for row in rows}


def valid_times(domain: Domain, reference_time: datetime) -> list[datetime]:
    """The instants that a forecast is for."""
    return [reference_time + (n + 1) * domain.cadence for n in range(domain.lead_frames)]

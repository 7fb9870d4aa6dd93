"""Score every published forecast whose observations arrived; score again only what new observations touch."""

import hashlib
import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import BadInput, DamagedFrame, LeaseLost, NotForecast
from pipeline.frames.archive import Archive, FrameSource
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


def verify(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime,
    end: datetime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyResult:
    """Verify the forecasts with a reference time in [start, end].

    A forecast is scored for the leads whose observation is in the archive; when more arrive it is scored again. One
    whose observations never come stays listed as waiting, with the reason. Doing it again changes nothing.
    """
    result = VerifyResult()
    archive = Archive(store, domain)
    source = archive.source()
    rows = published(catalog, domain, start, end)
    if source is None:
        result.waiting = len(rows)
        return result
    scorer = SumsFiles(domain, store, catalog, archive, source, result)
    by_file: dict[tuple[Path, str], list[Row]] = defaultdict(list)
    for row in rows:
        day = times.day_of(tables.from_seconds(row["reference_time"]))
        by_file[store.scores(domain.name, row["kind"], compared.scores_key(row, domain), day), row["kind"]].append(row)
    checksums = frame_checksums(catalog, domain, start, end)
    work: list[tuple[Path, list[Row]]] = []
    standing = scorer.recorded_digests()
    standing_rows: dict[Path, int] = {}
    for (path, _), of_file in by_file.items():
        whole = files.has_digest(path, standing.get(store.relative(path), ""))
        before = result.unchanged
        due = [row for row in of_file if _is_due(scorer, row, checksums, whole)]
        standing_rows[path] = result.unchanged - before
        if due:
            work.append((path, due))
    total = sum(len(due) for _, due in work)
    for path, due in work:
        before = result.scored + len(result.failed)

        def show(n: int, before: int = before) -> None:
            progress(before + n, total)

        def items(whole: bool, path: Path = path, due: list[Row] = due) -> list[Due]:
            if not whole:
                return [item for row in due if (item := scorer.due(row, checksums)) is not None]
            # the file is made anew: all forecasts that belong in it, also those that would have stood
            result.unchanged -= standing_rows[path]
            day = times.day_of(tables.from_seconds(due[0]["reference_time"]))
            rows = [
                row
                for row in published(catalog, domain, day, day.replace(hour=23, minute=59, second=59))
                if row["kind"] == due[0]["kind"] and compared.made_by(row) == compared.made_by(due[0])
            ]
            known = frame_checksums(catalog, domain, day, day.replace(hour=23, minute=59, second=59))
            return [item for row in rows if (item := scorer.due(row, known)) is not None]

        first = due[0]
        scorer.score(
            path,
            first["kind"],
            compared.scores_key(first, domain),
            compared.methods_of(first, domain),
            items,
            show,
        )
    return result


def _is_due(scorer: "SumsFiles", row: Row, checksums: dict[int, str], whole: bool) -> bool:
    """Whether the sums of a forecast may have to be made; one without observations is marked as waiting.

    Args:
        whole: the file with its sums is there, as the catalog recorded it.
    """
    item, result = scorer.due(row, checksums), scorer.result
    if item is None:
        result.waiting += 1
        if not row["verified_reason"]:
            scorer.mark([row | {"verified_reason": "no observation of its lead times has arrived"}])
        return False
    if item.digest == row["observations_digest"] and whole:
        result.unchanged += 1
        return False
    return True


class SumsFiles:
    """Makes the files of sums of one domain by one set of rules."""

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
        return Due(
            time,
            row["path"],
            digest,
            lambda: compared.of_product(self.domain, self.store, self.archive, row),
            row,
        )

    def digest(self, forecasts: list[str], methods: list[str], time: datetime, checksums: dict[int, str]) -> str | None:
        """What the sums of a forecast depend on; None if no observation has arrived."""
        found = [checksums.get(times.seconds(valid), "") for valid in valid_times(self.domain, time)]
        if not any(found):
            return None
        content = [forecasts, methods, self._rules_json, found]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def score(
        self,
        path: Path,
        kind: str,
        key: str,
        methods: list[str],
        items: Callable[[bool], list[Due]],
        progress: Callable[[int], None],
    ) -> None:
        """Score what is due of one file and replace it.

        Args:
            items: gives the forecasts that are due; with True, as the file is lost, damaged or was made for other
                methods or by other rules, all that belong in it.
        """
        name = self.store.relative(path)
        with self.catalog.lease(f"scores/{name}", LEASE_PATIENCE_S) as lease:
            if lease is None:
                self.result.failed.append((name, "another process works on these scores"))
                return
            standing = _standing_scores(path)
            if standing is not None:
                attrs = standing.attrs
                if attrs.get("methods") != " ".join(methods) or attrs.get("rules") != self._rules_json:
                    standing = None
            known = {} if standing is None else files.digests(standing)
            made, marked = [], []
            for n, item in enumerate(items(standing is None and self._was_made(name))):
                progress(n)
                seconds = times.seconds(item.reference_time)
                observations = self._observations.of(item.reference_time)
                if known.get(seconds) != item.digest:
                    try:
                        forecasts = item.load()
                        if [one.name for one in forecasts] != methods:
                            found = ", ".join(one.name for one in forecasts)
                            raise ValueError(f"{item.label} holds {found}, expected {', '.join(methods)}")
                        sums = self._scorer.sums(forecasts, observations)
                    except (OSError, ValueError, KeyError, BadInput, NotForecast) as err:
                        log.warning("cannot verify %s: %s", item.label, err)
                        self.result.failed.append((item.label, str(err)))
                        continue
                    records = {}
                    if item.row is not None and self._places.places:
                        records = self._places.records(self.store.root / item.row["path"], item.reference_time)
                    made.append(files.ForecastSums(seconds, item.digest, sums, records))
                else:
                    self.result.unchanged += 1
                if item.row is not None:
                    marked.append(item.row | self._verdict(item, observations))
            if not made:
                if standing is not None and marked:
                    row = self._file_row(
                        name, kind, key, marked[0]["reference_time"], str(standing.attrs["content_digest"])
                    )
                    with self.catalog.write() as connection:
                        self.catalog.upsert(connection, tables.scores, [row])
                self.mark(marked)
                return
            merged = files.merge(standing, files.to_dataset(made, methods, self.rules))
            try:
                with self.store.new_file(path) as temporary:
                    row = self._file_row(name, kind, key, made[0].reference_time, files.write(merged, temporary))
                    with self.catalog.write() as connection:
                        lease.check(connection)
                        self.store.put(temporary, path)
                        self.catalog.upsert(connection, tables.scores, [row])
                        self.catalog.upsert(connection, tables.cycles, marked)
            except LeaseLost as err:
                self.result.failed.append((name, str(err)))
                return
        self.result.scored += len(made)
        self.result.files.append(name)

    def recorded_digests(self) -> dict[str, str]:
        """Path -> content digest of every file of sums of the domain that the catalog knows."""
        s = tables.scores.c
        rows = self.catalog.read(sa.select(s.path, s.content_digest).where(s.domain == self.domain.name))
        return {row["path"]: row["content_digest"] for row in rows}

    def _file_row(self, name: str, kind: str, key: str, reference_time: int, content_digest: str) -> Row:
        day = times.seconds(times.day_of(tables.from_seconds(reference_time)))
        return {
            "path": name,
            "domain": self.domain.name,
            "kind": kind,
            "model": key,
            "day": day,
            "content_digest": content_digest,
        }

    def _was_made(self, name: str) -> bool:
        """Whether the catalog knows a file of that name: then others than those asked for belong in it."""
        query = sa.select(tables.scores.c.path).where(tables.scores.c.path == name)
        return bool(self.catalog.read(query))

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
        with self.catalog.write() as connection:
            self.catalog.upsert(connection, tables.cycles, rows)


def _standing_scores(path: Path) -> xr.Dataset | None:
    try:
        return files.read(path) if path.is_file() else None
    except (OSError, ValueError, KeyError) as err:
        log.warning("the scores %s are damaged, or of another format, and are made again: %s", path, err)
        return None


def published(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> list[Row]:
    """Rows of the forecasts with a reference time in [start, end]."""
    c = tables.cycles.c
    inside = c.reference_time.between(times.seconds(start), times.seconds(end))
    query = sa.select(tables.cycles).where(c.domain == domain.name, c.state == "published", inside)
    return catalog.read(query.order_by(c.reference_time, c.kind, c.revision))


def frame_checksums(catalog: Catalog, domain: Domain, start: datetime, end: datetime) -> dict[int, str]:
    """SHA-256 of every frame that a forecast with a reference time in [start, end] may be scored against."""
    f = tables.frames.c
    inside = f.valid_time.between(times.seconds(start), times.seconds(end + domain.horizon))
    rows = catalog.read(sa.select(f.valid_time, f.sha256).where(f.domain == domain.name, inside))
    return {row["valid_time"]: row["sha256"] for row in rows}


def valid_times(domain: Domain, reference_time: datetime) -> list[datetime]:
    """The instants that a forecast is for."""
    return [reference_time + (n + 1) * domain.cadence for n in range(domain.lead_frames)]

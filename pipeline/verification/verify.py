"""Score every published forecast whose observations arrived; score again only what new observations touch."""

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import partial

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.frames.archive import Archive
from pipeline.storage import Store
from pipeline.verification import compared, files
from pipeline.verification.sums_files import Due, SumsFiles, Target, VerifyResult, frame_checksums, published


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
    by_file: dict[tuple[datetime, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        day = times.day_of(tables.from_seconds(row["reference_time"]))
        by_file[day, row["kind"], compared.scores_key(row, domain)].append(row)
    checksums = frame_checksums(catalog, domain, start, end)
    recorded = scorer.recorded_digests()
    work: list[tuple[Target, list[Due], int]] = []
    for (day, kind, key), of_file in by_file.items():
        path = store.scores(domain.name, kind, key, day)
        whole = files.has_digest(store, path, recorded.get(store.relative(path), ""))
        before = result.unchanged
        due = [item for row in of_file if (item := _due(scorer, row, checksums, whole)) is not None]
        if due:
            target = Target(path, kind, key, compared.methods_of(of_file[0], domain))
            work.append((target, due, result.unchanged - before))
    total = sum(len(due) for _, due, _ in work)
    for target, due, unchanged in work:
        done = result.scored + len(result.failed)
        everything = partial(_everything, scorer, due[0], unchanged)
        scorer.score(target, due, everything, partial(_show, progress, done, total))
    return result


def _show(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _due(scorer: SumsFiles, row: Row, checksums: dict[int, str], whole: bool) -> Due | None:
    """A forecast whose sums may have to be made; None of one that stands, or waits for observations (it is marked).

    Args:
        whole: the file with its sums is there, as the catalog recorded it.
    """
    item, result = scorer.due(row, checksums), scorer.result
    if item is None:
        result.waiting += 1
        if not row["verified_reason"]:
            scorer.mark([row | {"verified_reason": "no observation of its lead times has arrived"}])
    elif item.digest == row["observations_digest"] and whole:
        result.unchanged += 1
        return None
    return item


def _everything(scorer: SumsFiles, one: Due, unchanged: int) -> list[Due]:
    """All forecasts of the file that ``one`` belongs in, also those that would have stood."""
    scorer.result.unchanged -= unchanged
    day = times.day_of(one.reference_time)
    last = day.replace(hour=23, minute=59, second=59)
    checksums = frame_checksums(scorer.catalog, scorer.domain, day, last)
    assert one.row is not None  # those of somebody else are not verified here
    same = [
        row
        for row in published(scorer.catalog, scorer.domain, day, last)
        if row["kind"] == one.row["kind"] and compared.made_by(row) == compared.made_by(one.row)
    ]
    return [item for row in same if (item := scorer.due(row, checksums)) is not None]

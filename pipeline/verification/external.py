"""Nowcasts of somebody else, from CF NetCDF files on the same pixels, scored beside our own."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import partial
from glob import iglob
from itertools import islice
from pathlib import Path

from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import BadInput, NotForecast, SettingsError, reading
from pipeline.frames.archive import Archive
from pipeline.storage import Store
from pipeline.verification import compared
from pipeline.verification.external_files import read_external, reference_time
from pipeline.verification.scoring import Compared
from pipeline.verification.sums_files import Due, SumsFiles, Target, VerifyResult, frame_checksums, published

MOST_FILES = 100_000


def verify_external(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    pattern: str,
    name: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyResult:
    """Score foreign forecasts beside ours of the same reference time and the baselines, on the same pixels.

    Args:
        pattern: of files, as a shell expands it; ``**`` goes into folders.
        name: of the method in tables and reports.

    Raises:
        SettingsError: the name cannot be used, or no file fits the pattern.
        NotForecast: the archive is empty.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise SettingsError(f"--name {name!r}: expected up to 40 letters, digits, - and _")
    paths = sorted(Path(path) for path in islice(iglob(pattern, recursive=True), MOST_FILES))
    if not paths:
        raise SettingsError(f"--external {pattern}: no file fits")
    archive = Archive(store, domain)
    source = archive.source()
    if source is None:
        raise NotForecast(f"{domain.name} has no frame to verify against; run `nowcast ingest {domain.name}` first")
    result = VerifyResult()
    scorer = SumsFiles(domain, store, catalog, archive, source, result)
    by_file: dict[tuple[Path, str], list[tuple[Row, Path, datetime]]] = defaultdict(list)
    first: dict[datetime, Path] = {}
    for path in paths:
        try:
            time = reference_time(path)
            if time in first:
                raise BadInput(f"{path} is of {times.iso(time)}, as {first[time]} is; only that one is scored")
            row = _ours(domain, catalog, time)
        except (BadInput, OSError, ValueError, KeyError, TypeError) as err:
            result.failed.append((str(path), str(err)))
            continue
        first[time] = path
        if name in (row["method"], *compared.BASELINES):
            raise SettingsError(f"--name {name}: a method of ours has this name; give another one")
        key = f"{name}.with.{compared.made_by(row)}"
        by_file[store.scores(domain.name, "external", key, times.day_of(time)), key].append((row, path, time))
    for (into, key), found in by_file.items():
        done = result.scored + result.unchanged + len(result.failed)
        items = [item for one in found if (item := _due(scorer, *one, name)) is not None]
        result.waiting += len(found) - len(items)
        methods = [name, *compared.methods_of(found[0][0], _plain(domain))]
        # a file that was made by other rules is made again from what the pattern gives
        target = Target(into, "external", key, methods)
        scorer.score(target, items, partial(list, items), partial(_show, progress, done, len(paths)))
    return result


def _show(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _plain(domain: Domain) -> Domain:
    """The domain as without references of pysteps, which are not made for this comparison."""
    return domain.model_copy(update={"verification": domain.verification.model_copy(update={"references": ()})})


def _due(scorer: SumsFiles, row: Row, path: Path, time: datetime, name: str) -> Due | None:
    domain, store = scorer.domain, scorer.store
    plain = _plain(domain)
    methods = [name, *compared.methods_of(row, plain)]
    content = _checksum(path)
    known = frame_checksums(scorer.catalog, domain, time, time)
    digest = scorer.digest([content, row["content_digest"], row["baselines_digest"]], methods, time, known)
    if digest is None:
        return None

    def load() -> list[Compared]:
        return [
            read_external(path, domain, scorer.rules, name),
            *compared.of_product(plain, store, scorer.archive, row),
        ]

    return Due(time, str(path), digest, load)


def _checksum(path: Path) -> str:
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _ours(domain: Domain, catalog: Catalog, time: datetime) -> Row:
    """Our forecast of that reference time, issued rather than hindcast."""
    rows = published(catalog, domain, time, time)
    if not rows:
        raise BadInput(
            f"we have no forecast of {domain.name} from {times.iso(time)} to compare with; `nowcast backfill` makes one"
        )
    return max(rows, key=lambda row: (row["kind"] == "issued", row["kind"] == "hindcast", row["revision"]))

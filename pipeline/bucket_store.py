"""The store in an S3 bucket. The bucket is the truth; the files below ``root/cache`` are copies of what was used."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import time as clock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import ConditionFailed, StoreUnavailable, reading
from pipeline.objects import LARGEST_PUT, Bucket, ObjectInfo, conditional_writes, split_uri
from pipeline.settings import Settings
from pipeline.storage import Store, Stored, as_lines, whole_lines, writing

log = logging.getLogger(__name__)

# of a file that is read whole into memory
MOST_BYTES = 64 << 20
ATTEMPTS = 20
# a copy that was used a moment ago may be about to be opened
IN_USE_S = 300.0
# read by path for as long as a process works
NEVER_DROPPED = ("clutter", "models", "retrain")
READERS = 8


class BucketStore(Store):
    """A part of a bucket, with a cache of at most ``cache_mb`` megabytes in the folder ``root``.

    A copy carries a mark, ``.NAME.etag``: the entity tag it was fetched with, and which file that was. It is used while
    the bucket still gives that tag.

    Raises:
        StoreUnavailable: the bucket cannot be reached or written, or was made by a newer version.
    """

    def __init__(self, root: Path, bucket: Bucket, cache_mb: int, reading: bool = False) -> None:
        self.root, self.temporary = root / "cache", root / "tmp"
        self.bucket = bucket
        self.name = f"s3://{bucket.bucket}/{bucket.prefix}"
        self._most_bytes = cache_mb << 20
        self._added: int | None = None  # bytes since the cache was looked through
        with writing(self.temporary):
            self.temporary.mkdir(parents=True, exist_ok=True)  # for copies also when only reading
        self._begin(reading)

    def key(self, path: Path) -> str | None:
        """The object's key below the bucket's prefix; None of a path outside, which is a local file."""
        return self.relative(path) if path.is_relative_to(self.root) else None

    def _prefix(self, folder: Path) -> str:
        """Of the keys below a folder."""
        return "" if folder == self.root else f"{self.relative(folder)}/"

    def _listed(self, folder: Path, begin: str = "") -> Iterator[ObjectInfo]:
        """Objects below a folder; one whose key is no path, or leads out of the cache, is not ours."""
        for info in self.bucket.list(self._prefix(folder) + begin):
            if {"", ".", ".."}.isdisjoint(info.key.split("/")):
                yield info

    def get(self, path: Path) -> Path:
        """As in a folder; the bucket is asked which version stands, and it is fetched if the copy is another."""
        if (key := self.key(path)) is None:
            return super().get(path)
        info = self.bucket.head(key)
        if info is None or not self._bring(path, info.etag):
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.name + key)
        return path

    def fetch(self, folder: Path) -> Path:
        """As in a folder; what the bucket does not have any more is dropped."""
        there = {self.root / info.key: info.etag for info in self._listed(folder)}
        for path, etag in there.items():
            self._bring(path, etag)
        for mark in folder.rglob(".*.etag"):
            if _marked(mark) not in there:
                _drop(mark)
        return folder

    def send(self, folder: Path) -> None:
        """Copy a folder into the bucket."""
        # the card is what a model is found by
        for path in sorted(
            (path for path in folder.rglob("*") if _is_content(path)), key=lambda p: p.suffix == ".json"
        ):
            self._mark(path, self.bucket.put(path, self.relative(path)), _identity(path))

    def size(self, path: Path) -> int | None:
        """Of the object."""
        if (key := self.key(path)) is None:
            return super().size(path)
        info = self.bucket.head(key)
        return None if info is None else info.size

    def listed(self, folder: Path, pattern: str = "**/*") -> list[Stored]:
        """Of the objects; their copies need not be there."""
        if self.key(folder) is None:
            return super().listed(folder, pattern)
        wanted, prefix = pattern.split("/"), self._prefix(folder)
        literal = re.split(r"[*?\[]", pattern)[0]  # no more is asked for than can fit
        return [
            Stored(self.root / info.key, info.size, info.modified.timestamp())
            for info in self._listed(folder, literal)
            if _fits(info.key.removeprefix(prefix).split("/"), wanted)
        ]

    def folders(self, folder: Path) -> list[str]:
        """Of the objects."""
        return sorted(self.bucket.folders(self._prefix(folder)))

    def remove(self, path: Path) -> None:
        """The object and its copy."""
        if (key := self.key(path)) is None:
            super().remove(path)
            return
        self.bucket.delete(key)
        _drop(_mark_of(path))

    def move(self, path: Path, to: Path) -> None:
        """A copy within the bucket, then the removal."""
        self.bucket.copy(self.relative(path), self.relative(to))
        self.remove(path)

    def put(self, temporary: Path, path: Path) -> None:
        """Into the bucket, and then into the cache."""
        if (key := self.key(path)) is None:
            super().put(temporary, path)
            return
        with writing(path):
            self._keep(temporary, path, self.bucket.put(temporary, key))

    def update(self, path: Path, change: Callable[[bytes | None], bytes | None]) -> None:
        """By a conditional write, which is read back: a server that ignores conditions lets an older one win."""
        key = self.relative(path)
        content: bytes | None = None
        # the lock is for the processes of this machine, in case the server ignores conditions
        with self.locked():
            for _ in range(ATTEMPTS):
                standing, etag = self.bucket.read(key, MOST_BYTES) or (None, None)
                if content is not None and standing == content:
                    return
                content = change(standing)
                if content is None:
                    return
                try:
                    self.bucket.put(content, key, if_match=etag, if_none_match=etag is None)
                except ConditionFailed:
                    log.info("%s%s was changed by another process; it is read again", self.name, key)
        raise StoreUnavailable(f"{self.name}{key}: others changed it {ATTEMPTS} times while it was to be written")

    def append_lines(self, path: Path, time: datetime, *entries: dict[str, Any]) -> None:
        """An object of its own, since objects cannot grow; the same entries, appended twice, are one."""
        lines = as_lines(entries).encode()
        name = f"{time:%Y%m%dT%H%M%S.%fZ}-{hashlib.sha256(lines.rstrip()).hexdigest()[:16]}.json"
        self.bucket.put(lines, f"{self.relative(path.with_suffix(''))}/{name}")

    def read_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """In the order of their times."""
        folder = self.relative(path.with_suffix(""))
        # a store that was a folder before has the file too, and its name comes first
        names = (f"{folder}.jsonl", f"{folder}/")
        keys = [info.key for info in self.bucket.list(folder) if info.key.startswith(names)]
        with ThreadPoolExecutor(READERS) as readers:
            for found in readers.map(lambda key: self.bucket.read(key, MOST_BYTES), keys):
                yield from whole_lines((found or (b"", ""))[0].decode("utf-8"))

    def read_journal(self, first_day: str = "") -> Iterator[dict[str, Any]]:
        """In the order of their times."""
        journal = self.root / "journal"
        files = {path.stem for path in self.glob(journal, "*.jsonl")}
        for day in sorted(files | set(self.folders(journal))):
            if day >= first_day:
                yield from self.read_lines(journal / f"{day}.jsonl")

    def _bring(self, path: Path, etag: str) -> bool:
        """Have a copy of that version, or of a newer one; False if the object is gone."""
        mark = _mark_of(path)
        if _etag_of(path, mark) == etag:
            with contextlib.suppress(FileNotFoundError):  # dropped this moment
                os.utime(mark)
                return True
        with self.new_file(path) as temporary:
            try:
                info = self.bucket.get(self.relative(path), temporary, LARGEST_PUT)
            except FileNotFoundError:
                return False
            self._keep(temporary, path, info.etag)
        return True

    def _keep(self, temporary: Path, path: Path, etag: str) -> None:
        identity, size = _identity(temporary), temporary.stat().st_size  # before others can put theirs in its place
        os.replace(temporary, path)
        self._mark(path, etag, identity)
        self._bound(size)

    def _mark(self, path: Path, etag: str, identity: tuple[str, ...]) -> None:
        """Say which version a copy is; of two that are written at once the mark fits one, or none, never the other."""
        with self.new_file(path) as temporary:
            temporary.write_text(" ".join((etag, *identity)))
            os.replace(temporary, _mark_of(path))

    def _bound(self, added: int) -> None:
        """Drop the copies that were used longest ago; looked at when a twentieth of the bound was added."""
        if self._added is not None and self._added + added < self._most_bytes // 20:
            self._added += added
            return
        self._added = 0
        used = []
        for mark in self.root.rglob(".*.etag"):
            try:
                used.append((mark.stat().st_mtime, _marked(mark).stat().st_size, mark))
            except FileNotFoundError:
                continue  # another process dropped it
        total = sum(size for _, size, _ in used)
        for when, size, mark in sorted(used):
            if total <= self._most_bytes or clock.time() - when < IN_USE_S:
                return
            if mark.relative_to(self.root).parts[0] in NEVER_DROPPED:
                continue
            with contextlib.suppress(FileNotFoundError):
                if mark.stat().st_mtime == when:  # not used since
                    _drop(mark)
                total -= size


def open_bucket_store(settings: Settings, reading: bool) -> BucketStore:
    """The store of the settings, whose ``store`` is a bucket.

    Raises:
        StoreUnavailable: see ``BucketStore``; or several machines may write, and the server ignores conditions.
    """
    bucket = Bucket(settings.s3, *split_uri(settings.store))
    if reading:
        bucket.check()  # that something is not there looks like a bucket that is not there
    elif not _keeps_conditions(bucket) and not settings.catalog.startswith("sqlite:"):
        raise StoreUnavailable(
            f"store = {settings.store!r}: the server ignores the conditions of writes (If-Match), so two "
            "machines could overwrite each other's files, and a catalog in PostgreSQL is for several machines; use a "
            "server that keeps them, or SQLite and one machine"
        )
    return BucketStore(settings.root, bucket, settings.cache_mb, reading)


@lru_cache(maxsize=16)
def _keeps_conditions(bucket: Bucket) -> bool:
    kept = conditional_writes(bucket)
    if not kept:
        log.warning(
            "s3://%s ignores the conditions of writes: only one machine may write to it",
            bucket.bucket,
        )
    return kept


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """As ``Path.glob``: ``*`` stays within a name, ``**`` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[n:], pattern[1:]) for n in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.etag")


def _marked(mark: Path) -> Path:
    return mark.with_name(mark.name[1:].removesuffix(".etag"))


def _is_content(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _identity(path: Path) -> tuple[str, ...]:
    found = path.stat()
    return str(found.st_ino), str(found.st_size), str(found.st_mtime_ns)


def _etag_of(path: Path, mark: Path) -> str:
    """The version that a copy is; empty if there is none, or it is not the file that was marked."""
    try:
        with reading(mark):
            etag, *identity = mark.read_text().split()
            return etag if tuple(identity) == _identity(path) else ""
    except (FileNotFoundError, ValueError):
        return ""


def _drop(mark: Path) -> None:
    _marked(mark).unlink(missing_ok=True)
    mark.unlink(missing_ok=True)

"""The root: where every kind of file lies, and how a file appears there whole or not at all.

Paths below the root are names; what reads, writes, lists or removes what they name are the methods of the Store.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import processes, times
from pipeline.errors import StoreUnavailable, reading
from pipeline.settings import Settings

FORMAT_VERSION = 1
TEMPORARY_AGE_S = 3600.0


@dataclass(frozen=True)
class Stored:
    """A file of the store: bytes, and when it was written, seconds since 1970."""

    path: Path
    size: int
    written_at: float


class Store:
    """A local folder, or a bucket (``BucketStore``), with archive, products, scores, reports, quarantine and journal.

    Args:
        root: the folder.
        reading: make nothing; the folder may be read-only, or not there yet.

    Raises:
        StoreUnavailable: the folder cannot be made or written, or was made by a newer version.
    """

    def __init__(self, root: Path, reading: bool = False) -> None:
        self.root, self.temporary = root, root / "tmp"
        self.name = str(root)
        self._begin(reading)

    def _begin(self, reading: bool) -> None:
        """Make what is missing, and look at the format."""
        marker = self.root / "format.json"
        ours = (json.dumps({"format_version": FORMAT_VERSION}) + "\n").encode()
        found = ours

        def unless_there(standing: bytes | None) -> bytes | None:
            nonlocal found
            found = ours if standing is None else standing
            return ours if standing is None else None

        try:
            if reading and not self.has(marker):
                return
            if reading:
                found = self.read(marker)
            else:
                self.temporary.mkdir(parents=True, exist_ok=True)
                self.update(marker, unless_there)
            version = json.loads(found).get("format_version")
        except (OSError, ValueError) as err:
            raise StoreUnavailable(f"the root {self.name} cannot be used: {err}") from err
        if version != FORMAT_VERSION:
            raise StoreUnavailable(
                f"the root {self.name} has format {version}, this version reads {FORMAT_VERSION}; "
                "use the version that made it"
            )

    def __eq__(self, other: object) -> bool:
        """Stores of one place, with one cache, are one."""
        return isinstance(other, Store) and (other.root, other.name) == (self.root, self.name)

    def __hash__(self) -> int:
        return hash((self.root, self.name))

    def archive(self, domain: str) -> Path:
        """Folder of the daily Zarr stores."""
        return self.root / "archive" / domain

    def clutter(self, domain: str) -> Path:
        """Folder of the clutter maps of a domain's radars."""
        return self.root / "clutter" / domain

    def product(self, domain: str, kind: str, reference_time: datetime, revision: int) -> Path:
        """Forecast file; a pure function of its identity."""
        name = f"{domain}_{times.compact(reference_time)}_r{revision}.nc"
        return self.root / "products" / domain / kind / reference_time.strftime("%Y/%m/%d") / name

    def baselines(self, product: Path) -> Path:
        """The file with the baselines' forecasts that belongs to a product."""
        return product.with_name(product.stem + ".baselines.nc")

    def place_forecasts(self, product: Path) -> Path:
        """The JSON document of the places of a product; the same as a table ends in ``.csv``."""
        return product.with_name(product.stem + ".places.json")

    def warnings(self, domain: str) -> Path:
        """How the warnings of a domain stand; every one that was raised or ended is a line of the ``.jsonl`` beside."""
        return self.root / "warnings" / f"{domain}.json"

    def latest(self, domain: str) -> Path:
        """Hint to the newest issued product."""
        return self.root / "products" / domain / "latest.json"

    def scores(self, domain: str, kind: str, model: str, day: datetime) -> Path:
        """Verification sums of one domain, kind, model and day."""
        return self.root / "verification" / domain / kind / safe_name(model) / f"{day:%Y%m%d}.nc"

    def report(self, domain: str) -> Path:
        """Default folder of reports."""
        return self.root / "reports" / domain

    def view(self, domain: str) -> Path:
        """Default folder of the forecast page."""
        return self.root / "view" / domain

    def models(self, name: str = "") -> Path:
        """Folder of the checkpoints trained here; that of ``name``, if there is one, is at hand to be loaded."""
        folder = self.root / "models"
        if name and name == safe_name(name):
            self.fetch(folder / name)
        return folder

    def quarantine(self, domain: str, key: str, sha256: str) -> Path:
        """Where a file that cannot be used is kept: its checksum makes the name unique, its key readable."""
        return self.root / "quarantine" / domain / f"{sha256[:12]}_{safe_name(key)}"

    def relative(self, path: Path) -> str:
        """Path below the root, as the catalog keeps it."""
        return path.relative_to(self.root).as_posix()

    def get(self, path: Path) -> Path:
        """The path itself, where the file as it stands now can be opened.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.size(path) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
        return path

    def read(self, path: Path) -> bytes:
        """The content of a small file as it stands now.

        Raises:
            FileNotFoundError: there is none.
            StoreUnavailable: the machine cannot read it.
        """
        with reading(path):
            return self.get(path).read_bytes()

    def fetch(self, folder: Path) -> Path:
        """The folder itself, where all its files as they stand now can be opened; it may have none."""
        return folder

    def send(self, folder: Path) -> None:
        """Make a folder that was written at its place, not by ``publish``, part of the store."""

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        return self.size(path) is not None

    def size(self, path: Path) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            with reading(path):
                found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def glob(self, folder: Path, pattern: str) -> list[Path]:
        """Paths of what is ``listed``."""
        return [file.path for file in self.listed(folder, pattern)]

    def listed(self, folder: Path, pattern: str = "**/*") -> list[Stored]:
        """Files below a folder by a pattern of ``Path.glob``, in order, with what the store knows of them."""
        found = []
        with reading(folder):
            for path in sorted(_globbed(folder, pattern)):
                try:
                    about = path.stat()
                except FileNotFoundError:
                    continue  # removed since
                if stat.S_ISREG(about.st_mode):
                    found.append(Stored(path, about.st_size, about.st_mtime))
        return found

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders directly below one, in order."""
        with reading(folder):
            return sorted(path.name for path in _globbed(folder, "*") if path.is_dir())

    def remove(self, path: Path) -> None:
        """Remove a file; it is no error if there is none."""
        with writing(path):
            path.unlink(missing_ok=True)

    def move(self, path: Path, to: Path) -> None:
        """Give a file another name.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.size(path) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
        with writing(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, to)

    def update(self, path: Path, change: Callable[[bytes | None], bytes | None]) -> None:
        """Write what ``change`` makes of a small file's content, and of nothing in between.

        Args:
            change: from the content (None: there is no file) to the new one (None: leave it); it may be asked again,
                if another process was faster, and must then decide by what stands now.
        """
        with self.locked():
            content = change(self.read(path) if self.has(path) else None)
            if content is not None:
                with self.publish(path) as temporary:
                    temporary.write_bytes(content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else ``update`` a file of this root, also from another machine that has it mounted."""
        lock = self.temporary.parent / ".lock"
        with writing(lock):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with writing(lock):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def publish(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path; when the block ends well its file is made durable and takes the place of ``path``.

        Raises:
            StoreUnavailable: the disk is full, read-only or gone; ``path`` is as it was.
        """
        with self.new_file(path) as temporary:
            yield temporary
            self.put(temporary, path)

    @contextmanager
    def new_file(self, path: Path) -> Iterator[Path]:
        """A temporary path for what may become ``path``; removed when the block ends, unless ``put`` moved it."""
        inside = path.is_relative_to(self.root)  # a rename cannot cross file systems
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = (self.temporary if inside else path.parent) / f"{_owner()}{uuid.uuid4().hex[:12]}{path.suffix}"
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def put(self, temporary: Path, path: Path) -> None:
        """Make a temporary file durable under its name."""
        with writing(path):
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder below the root, removed when the block ends."""
        with (
            writing(self.temporary),
            tempfile.TemporaryDirectory(dir=self.temporary, prefix=_owner(), ignore_cleanup_errors=True) as folder,
        ):
            yield Path(folder)

    def remove_stale_temporaries(self) -> int:
        """Remove what a killed process left: at once if it ran on this machine, else after an hour."""
        removed = 0
        with writing(self.temporary):
            for path in self.temporary.iterdir():
                where, _, pid = path.name.rpartition("-")[0].rpartition("-")
                ours = where == _machine_digest()
                try:
                    dead = ours and processes.has_ended_here(processes.machine(), pid)
                    if dead or time.time() - path.stat().st_mtime > TEMPORARY_AGE_S:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                        removed += 1
                except FileNotFoundError:
                    continue  # another process removed it first
        return removed

    def append_journal(self, now: datetime, *entries: dict[str, Any]) -> None:
        """Append entries to ``journal/DATE``."""
        path = self.root / "journal" / f"{now:%Y-%m-%d}.jsonl"
        self.append_lines(path, now, *({"recorded_at": times.iso(now), **entry} for entry in entries))

    def append_lines(self, path: Path, time: datetime, *entries: dict[str, Any]) -> None:
        """Append a line of JSON for each entry to a record; one write, so that lines of two processes never mix.

        Args:
            path: ends in ``.jsonl``.
            time: of the entries, which orders them where nothing can be appended.
        """
        lines = as_lines(entries)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a crash
                os.write(descriptor, f"{chr(10) * cut_off}{lines}".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Entries of a record, oldest first; a line cut off by a crash is skipped."""
        try:
            content = self.read(path)
        except FileNotFoundError:
            return
        yield from whole_lines(content.decode("utf-8", "replace"))

    def read_journal(self, first_day: str = "") -> Iterator[dict[str, Any]]:
        """Every entry, oldest first; or those since a day, as 2026-01-31."""
        for path in self.glob(self.root / "journal", "*.jsonl"):
            if path.stem >= first_day:
                yield from self.read_lines(path)


def as_lines(entries: Iterable[dict[str, Any]]) -> str:
    """Each as a line of JSON."""
    return "".join(json.dumps(entry, sort_keys=True, default=str) + "\n" for entry in entries)


def whole_lines(text: str) -> Iterator[dict[str, Any]]:
    """The lines of JSON that are whole."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def open_store(settings: Settings, reading: bool = False) -> Store:
    """The store of the settings: a bucket if they name one, else the root itself."""
    if not settings.store:
        return Store(settings.root, reading)
    from pipeline.bucket_store import open_bucket_store

    return open_bucket_store(settings, reading)


def safe_name(text: str) -> str:
    """A name from outside as a part of a path: letters, digits, dot, dash, underscore; never hidden, never long."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".")[-80:] or "unnamed"


def _owner() -> str:
    """Prefix of a temporary's name: which process of which machine writes it."""
    return f"{_machine_digest()}-{os.getpid()}-"


def _machine_digest() -> str:
    return hashlib.sha256(processes.machine().encode()).hexdigest()[:16]


def _globbed(folder: Path, pattern: str) -> Iterator[Path]:
    """What ``Path.glob`` gives; a folder that cannot be read raises, where that would see an empty one."""
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from folder.glob(pattern)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says when a file cannot be written, as an error for people."""
    try:
        yield
    except OSError as err:
        raise StoreUnavailable(f"cannot write {path}: {err.strerror or err}") from err


def flush(path: Path) -> None:
    """Ask the disk to keep what was written (a file, or the names in a folder)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The root: where every kind of file lies, and how a file appears there whole or not at all."""

import errno
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import times
from pipeline.errors import StoreUnavailable

FORMAT_VERSION = 1
TEMPORARY_AGE_S = 3600.0


@dataclass(frozen=True)
class Stored:
    """A file of the store: bytes, and when it was written, seconds since 1970."""

    path: Path
    size: int
    written_at: float


class Store:
    """A local folder that holds archive, products, scores, reports, quarantine and journal.

    Args:
        root: the folder.
        reading: make nothing; the folder may be read-only, or not there yet.

    Raises:
        StoreUnavailable: the folder cannot be made or written, or was made by a newer version.
    """

    def __init__(self, root: Path, reading: bool = False) -> None:
        self.root = root
        self.temporary = root / "tmp"
        marker = root / "format.json"
        if reading and not marker.is_file():
            return
        try:
            if not reading:
                self.temporary.mkdir(parents=True, exist_ok=True)
            if not marker.is_file():
                with self.publish(marker) as path:
                    path.write_text(json.dumps({"format_version": FORMAT_VERSION}) + "\n")
            found = json.loads(marker.read_text()).get("format_version")
        except (OSError, ValueError) as err:
            raise StoreUnavailable(f"the root {root} cannot be used: {err}") from err
        if found != FORMAT_VERSION:
            raise StoreUnavailable(
                f"the root {root} has format {found}, this version reads {FORMAT_VERSION}; use the version that made it"
            )

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

    def models(self) -> Path:
        """Checkpoints trained here."""
        return self.root / "models"

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
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
        return path

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        return path.is_file()

    def listed(self, folder: Path, pattern: str = "**/*") -> list[Stored]:
        """Files below a folder by a pattern of ``Path.glob``, in order, with what the store knows of them."""
        found = []
        for path in sorted(folder.glob(pattern)):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue  # removed since
            if stat.S_ISREG(about.st_mode):
                found.append(Stored(path, about.st_size, about.st_mtime))
        return found

    def remove(self, path: Path) -> None:
        """Remove a file; it is no error if there is none."""
        with _writing(path):
            path.unlink(missing_ok=True)

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
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = (self.temporary if inside else path.parent) / f"{_owner()}{uuid.uuid4().hex[:12]}{path.suffix}"
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def put(self, temporary: Path, path: Path) -> None:
        """Make a temporary file durable under its name."""
        with _writing(path):
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder below the root, removed when the block ends."""
        with (
            _writing(self.temporary),
            tempfile.TemporaryDirectory(dir=self.temporary, prefix=_owner(), ignore_cleanup_errors=True) as folder,
        ):
            yield Path(folder)

    def remove_stale_temporaries(self) -> int:
        """Remove what a killed process left: at once if it ran on this machine, else after an hour."""
        removed = 0
        for path in self.temporary.iterdir():
            host, _, pid = path.name.rpartition("-")[0].rpartition("-")
            try:
                dead = host == socket.gethostname() and pid.isdigit() and not process_lives(int(pid))
                if dead or time.time() - path.stat().st_mtime > TEMPORARY_AGE_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # another process removed it first
        return removed

    def append_journal(self, now: datetime, entry: dict[str, Any]) -> None:
        """Append an entry to ``journal/DATE``."""
        path = self.root / "journal" / f"{now:%Y-%m-%d}.jsonl"
        self.append_line(path, {"recorded_at": times.iso(now), **entry})

    def append_line(self, path: Path, entry: dict[str, Any]) -> None:
        """Append one line of JSON to a file; one write, so that lines of two processes never mix."""
        line = json.dumps(entry, sort_keys=True, default=str)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a crash
                os.write(descriptor, f"{chr(10) * cut_off}{line}\n".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read_journal(self) -> Iterator[dict[str, Any]]:
        """Every entry, oldest first; a line cut off by a crash is skipped."""
        for path in sorted((self.root / "journal").glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


def safe_name(text: str) -> str:
    """A name from outside as a part of a path: letters, digits, dot, dash, underscore; never hidden, never long."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".")[-80:] or "unnamed"


def _owner() -> str:
    """Prefix of a temporary's name: which process of which machine writes it."""
    return f"{socket.gethostname()}-{os.getpid()}-"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise StoreUnavailable(f"cannot write {path}: {err.strerror or err}") from err


def process_lives(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Ask the disk to keep what was written (a file, or the names in a folder)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

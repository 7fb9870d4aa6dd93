"""Space on the disk of the root: free, and used by kind of data."""

import os
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# an archive has an object per frame, so that counting all of a year takes minutes
COUNTING_S = 2.0
GB = 1e9


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        free, size: of the file system of the root; None if there is no root yet.
        used: by what lies directly below the root, the largest first.
        complete: whether all was counted; if not, ``used`` is less than it is.
    """

    free: int | None
    size: int | None
    used: dict[str, int]
    complete: bool


def read_disk(root: Path) -> Disk:
    """Free space as it is now, and used space as it was at most an hour ago."""
    if not root.is_dir():
        return Disk(None, None, {}, True)
    space = shutil.disk_usage(root)
    used, complete = _used(root, int(time.monotonic() // 3600))
    return Disk(space.free, space.total, dict(used), complete)


@lru_cache(maxsize=4)
def _used(root: Path, hour: int) -> tuple[tuple[tuple[str, int], ...], bool]:
    """Used bytes by kind; counted once an hour in the life of a process."""
    end = time.monotonic() + COUNTING_S
    found: dict[str, int] = {}
    complete = True
    for entry in _entries(root):
        if entry.is_dir(follow_symlinks=False):
            found[entry.name], whole = _below(entry.path, end)
            complete &= whole
        else:
            name = "catalog" if entry.name.startswith("catalog.sqlite") else "other"
            found[name] = found.get(name, 0) + _size(entry)
    return tuple(sorted(found.items(), key=lambda item: -item[1])), complete


def _below(folder: str, end: float) -> tuple[int, bool]:
    total, folders = 0, [folder]
    while folders:
        if time.monotonic() > end:
            return total, False
        for entry in _entries(Path(folders.pop())):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                total += _size(entry)
    return total, True


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # removed meanwhile, or not ours to read


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes on the disk, which are whole blocks."""
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0

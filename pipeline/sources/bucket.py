"""Files of an S3 bucket: which part of it a time window needs, and scratch copies of its objects.

Keys come from outside: they are compared with patterns and asked for again, and never become paths.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.objects import Bucket, CutShort, ObjectInfo, split_uri
from pipeline.source_settings import FilesSource, S3Access, VolumesSource
from pipeline.sources.contract import FileInfo
from pipeline.storage import safe_name

log = logging.getLogger(__name__)

# requests at the same time; waiting for answers is what takes the time
CONNECTIONS = 8
LONGEST_KEY = 400  # the catalog keeps keys
NUMBERS = 999
# folders in a row that are older than the window, before the rest is taken to be older too
OLDER_FOLDERS = 3


class BucketFiles:
    """Implements ``pipeline.sources.contract.Files``."""

    def __init__(self, config: FilesSource) -> None:
        self.bucket = Bucket(config.s3 or S3Access(), *split_uri(config.uri))
        self.place = config.uri
        self.layout = config.layout
        self.radars = config.radars if isinstance(config, VolumesSource) and "{radar}" in config.layout else ("",)

    def list(self, start: datetime, end: datetime) -> Iterator[FileInfo]:
        """Objects below the prefixes that the layout makes of the times in [start, end]."""
        wanted = [(radar, prefix) for radar in self.radars for prefix in self._prefixes(radar, start, end)]
        refused: list[str] = []
        with ThreadPoolExecutor(min(CONNECTIONS, len(wanted))) as pool:
            for (radar, prefix), found in zip(
                wanted, pool.map(lambda w: self._listed(w[1], start), wanted), strict=True
            ):
                for one in found:
                    if not one.key or one.key.endswith("/"):
                        continue  # what some tools write as a folder
                    if not _is_harmless(one.key):
                        refused.append(one.key)
                        continue
                    below = one.key[prefix.rfind("/") + 1 :]
                    if "{number}" in self.layout:
                        below = below.partition("/")[2]
                    yield FileInfo(one.key, below, radar, one.size, _stamp(one), one.modified)
        if refused:
            log.warning(
                "left alone: %d keys of %s that no source has, such as %.80r", len(refused), self.place, refused[0]
            )

    def fetch(self, keys: Sequence[str], stamps: Sequence[str], folder: Path, max_bytes: int) -> Sequence[Path]:
        """Copies in ``folder``, each below a number, with what its name has of harmless characters."""
        names = [safe_name(key.rpartition("/")[2]) for key in keys]
        paths = [folder / str(n) / name for n, name in enumerate(names)]
        for path in paths:
            path.parent.mkdir()
        with ThreadPoolExecutor(min(CONNECTIONS, len(paths))) as pool:
            list(pool.map(lambda k, s, p: self._fetch(k, s, p, max_bytes), keys, stamps, paths))
        return paths

    def _fetch(self, key: str, stamp: str, path: Path, max_bytes: int) -> None:
        try:
            info = self.bucket.get(key, path, max_bytes)
        except CutShort as err:
            raise OSError(str(err)) from err
        if _stamp(info) != stamp:
            raise OSError("it was replaced since it was listed")

    def _prefixes(self, radar: str, start: datetime, end: datetime) -> Iterable[str]:
        """Of every hour of the window, each once."""
        pattern = self.layout.replace("{radar}", radar).removesuffix("{number}/")
        hours = int((end - start) / timedelta(hours=1)) + 1
        times = (*(start + timedelta(hours=n) for n in range(hours)), end)
        return dict.fromkeys(time.strftime(pattern) for time in times)

    def _listed(self, prefix: str, start: datetime) -> Sequence[ObjectInfo]:
        if "{number}" not in self.layout:
            return list(self.bucket.list(prefix))
        found: list[ObjectInfo] = []
        older = 0
        for number in newest_first(self.bucket.folders(prefix)):
            objects = list(self.bucket.list(f"{prefix}{number}/"))
            found += objects
            older = older + 1 if all(one.modified < start for one in objects) else 0
            if older == OLDER_FOLDERS:
                break
        return found


def newest_first(folders: Iterable[str]) -> Sequence[int]:
    """Numbers that go round from 1 to 999, the newest first: they end before the widest gap.

    Objects live for a day, and a day has less than half of the numbers, so the gap is wide.
    """
    numbers = sorted(
        {int(name) for name in folders if name.isdecimal() and len(name) <= 3 and 0 < int(name) <= NUMBERS}
    )
    if not numbers:
        return []
    gaps = [(after - before) % NUMBERS for before, after in zip(numbers, [*numbers[1:], numbers[0]], strict=True)]
    last = gaps.index(max(gaps))
    return [numbers[last - n] for n in range(len(numbers))]


def _is_harmless(key: str) -> bool:
    return len(key) <= LONGEST_KEY and key.isprintable() and key[0] != "/" and ".." not in key.split("/")


def _stamp(info: ObjectInfo) -> str:
    return f"{info.size}-{info.etag}"

"""Which files a source has in a time window, and how their bytes come here: a local folder, or an S3 bucket."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StoreUnavailable
from pipeline.source_settings import FilesSource
from pipeline.sources.bucket import BucketFiles
from pipeline.sources.contract import FileInfo, Files


class Folder:
    """Files of a local folder, not of its subfolders; nothing is copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder)

    def list(self, start: datetime, end: datetime) -> Iterator[FileInfo]:
        """All of them: a folder does not know the times of its files."""
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    try:
                        if not entry.is_file():
                            continue
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # moved away since the folder was listed
                    stamp = f"{stat.st_size}-{stat.st_mtime_ns}"
                    arrived = datetime.fromtimestamp(stat.st_mtime, UTC)
                    yield FileInfo(entry.name, entry.name, "", stat.st_size, stamp, arrived)
        except OSError as err:
            raise StoreUnavailable(f"cannot read the source folder {self.folder}: {err.strerror}") from err

    def fetch(self, keys: Sequence[str], stamps: Sequence[str], folder: Path, max_bytes: int) -> Sequence[Path]:
        """The files themselves."""
        return [self.folder / key for key in keys]


def open_files(config: FilesSource) -> Files:
    """Where the settings of a source say that its files lie."""
    return BucketFiles(config) if config.in_bucket else Folder(Path(config.uri))

"""A folder of gridded composites whose file names carry the time."""

import hashlib
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import BadInput, StoreUnavailable
from pipeline.source_settings import GriddedSource
from pipeline.sources.contract import RainField, VolumeRef
from pipeline.sources.readers import READERS

log = logging.getLogger(__name__)


class GriddedFolder:
    """Implements ``pipeline.sources.contract.Source`` for a local folder (not its subfolders)."""

    def __init__(self, config: GriddedSource) -> None:
        self.folder = Path(config.uri)
        self.name = config.reader
        self.reader = READERS[config.reader]
        self.max_bytes = int(config.max_file_mb * 2**20)

    def list(self, start: datetime, end: datetime) -> list[VolumeRef]:
        """Files of the reader's naming with a time in [start, end]; others are not ours and are left alone."""
        refs, ours, others = [], 0, []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    time = self.reader.time_of(entry.name)
                    if time is None:
                        others.append(entry.name)
                    else:
                        ours += 1
                    if time is None or not start <= time <= end or not entry.is_file():
                        continue
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # moved away since the folder was listed
                    arrived = datetime.fromtimestamp(stat.st_mtime, UTC)
                    etag = hashlib.sha256(f"{stat.st_size}-{stat.st_mtime_ns}".encode()).hexdigest()[:16]
                    refs.append(VolumeRef(entry.name, time, stat.st_size, etag, arrived))
        except OSError as err:
            raise StoreUnavailable(f"cannot read the source folder {self.folder}: {err.strerror}") from err
        if others and not ours:
            log.warning(
                "none of the %d names in %s is one of the reader %s (%s), for example %s",
                len(others), self.folder, self.name, self.reader.pattern.pattern, min(others),
            )  # fmt: skip
        return sorted(refs, key=lambda ref: (ref.nominal_time, ref.key))

    def fetch(self, ref: VolumeRef, folder: Path) -> Path:
        """The file itself; nothing is copied."""
        if ref.size > self.max_bytes:
            raise BadInput(f"{ref.key}: {ref.size} bytes, more than the {self.max_bytes} allowed (max_file_mb)")
        return self.folder / ref.key

    def decode(self, path: Path) -> RainField:
        """See the reader."""
        if path.stat().st_size == 0:
            raise BadInput(f"{path.name}: the file is empty")
        return self.reader.read(path)

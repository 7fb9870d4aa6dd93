"""Gridded composites whose file names carry the time, in a folder or a bucket."""

import hashlib
import logging
from datetime import datetime
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.source_settings import GriddedSource
from pipeline.sources.contract import RainField, VolumeRef
from pipeline.sources.files import open_files
from pipeline.sources.readers import READERS

log = logging.getLogger(__name__)


class GriddedFiles:
    """Implements ``pipeline.sources.contract.Source``."""

    def __init__(self, config: GriddedSource) -> None:
        self.files = open_files(config)
        self.name = config.reader
        self.reader = READERS[config.reader]
        self.max_bytes = int(config.max_file_mb * 2**20)

    def list(self, start: datetime, end: datetime) -> list[VolumeRef]:
        """Files of the reader's naming with a time in [start, end]; others are not ours and are left alone."""
        refs, ours, others = [], 0, []
        for file in self.files.list(start, end):
            name = file.below.rpartition("/")[2]
            time = self.reader.time_of(name)
            if time is None:
                others.append(name)
                continue
            ours += 1
            if start <= time <= end:
                etag = hashlib.sha256(file.stamp.encode()).hexdigest()[:16]
                stamps = (file.stamp,)
                refs.append(VolumeRef(file.key, time, file.size, etag, file.arrived_at, stamps=stamps))
        if others and not ours:
            log.warning(
                "none of the %d names in %s is one of the reader %s (%s), for example %s",
                len(others), self.files.place, self.name, self.reader.pattern.pattern, min(others),
            )  # fmt: skip
        return sorted(refs, key=lambda ref: (ref.nominal_time, ref.key))

    def fetch(self, ref: VolumeRef, folder: Path) -> Path:
        """The file itself, or a copy of the object."""
        if ref.size > self.max_bytes:
            raise BadInput(f"{ref.key}: {ref.size} bytes, more than the {self.max_bytes} allowed (max_file_mb)")
        return self.files.fetch([ref.key], ref.stamps, folder, self.max_bytes)[0]

    def decode(self, path: Path) -> RainField:
        """See the reader."""
        if path.stat().st_size == 0:
            raise BadInput(f"{path.name}: the file is empty")
        return self.reader.read(path)

"""Gridded composites whose file names carry the time, in a folder or a bucket."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.source_settings import GriddedSource
from pipeline.sources.contract import RainField, VolumeRef
from pipeline.sources.files import open_files
from pipeline.sources.readers import READERS, Reading

log = logging.getLogger(__name__)


class GriddedFiles:
    """Implements ``pipeline.sources.contract.Source``."""

    def __init__(self, config: GriddedSource) -> None:
        self.files = open_files(config)
        self.name = config.reader
        self.reader = READERS[config.reader]
        self.reading = Reading(config.quantity, config.dataset, config.shared_code)
        # other settings of reading make another frame of the same bytes
        self._settings = "" if self.reading == Reading() else str(self.reading)
        self.max_bytes = int(config.max_file_mb * 2**20)

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
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
                etag = hashlib.sha256((file.stamp + self._settings).encode()).hexdigest()[:16]
                stamps = (file.stamp,)
                refs.append(VolumeRef(file.key, time, file.size, etag, file.arrived_at, stamps=stamps))
        if others and not ours:
            warn(
                f"none of the {len(others)} names in {self.files.place} fits the reader {self.name}, for example "
                f"{min(others)}; its pattern is {self.reader.pattern.pattern}"
            )
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
        return self.reader.read(path, self.reading)

    def keep(self, quantity: str) -> None:
        """From now on only this of several quantities is decoded, unless the settings name one."""
        self.reading = replace(self.reading, quantity=self.reading.quantity or quantity)

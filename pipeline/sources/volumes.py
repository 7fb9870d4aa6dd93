"""A folder of polar volumes: which files make up a volume, and when and by which radar it was measured."""

import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import times
from pipeline.errors import BadInput, StoreUnavailable
from pipeline.radar.decode import DecodeOptions, of_one_scan, read_volume
from pipeline.radar.formats import header_time, whole_records
from pipeline.radar.volume import Site, Volume
from pipeline.source_settings import VolumesSource
from pipeline.sources.contract import VolumeRef

log = logging.getLogger(__name__)

# pieces of a volume come every few seconds; a volume without its end is taken after this time
PIECES_FOLLOW_WITHIN, LONGEST_VOLUME = timedelta(seconds=60), timedelta(minutes=15)
# of a radar, as the catalog keeps it
LONGEST_NAME = 40

# chunk, name, what the file system says
_File = tuple[str, str, os.stat_result]


class VolumeFolder:
    """Lists volumes like any source; what it fetches is decoded to a ``Volume`` instead of a field."""

    def __init__(self, config: VolumesSource) -> None:
        self.config = config
        self.folder = Path(config.uri)
        self.pattern = re.compile(config.pattern)
        self.max_bytes = int(config.max_file_mb * 2**20)

    def list(self, start: datetime, end: datetime) -> list[VolumeRef]:
        """Volumes with a nominal time in [start, end], ordered by time, then key; other names are left alone."""
        groups: dict[tuple[str, datetime], Any] = defaultdict(list)
        seen = 0
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    seen += 1
                    match = self.pattern.fullmatch(entry.name)
                    if match is None or not entry.is_file():
                        continue
                    found = match.groupdict()
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # moved away since the folder was listed
                    try:
                        time = self._time(found.get("time"), entry, stat)
                        if len(found.get("radar") or "") > LONGEST_NAME:
                            raise BadInput(f"{entry.name}: the name of its radar is longer than {LONGEST_NAME}")
                    except BadInput as err:
                        log.warning("left alone: %s", err)
                        continue
                    if self.config.join == "cycle":
                        time = times.EPOCH + (time - times.EPOCH) // self._cycle * self._cycle
                    name = found.get("radar") or "radar"
                    alone = "" if self.config.join != "none" else entry.name
                    groups[f"{name}/{alone}", time].append((found.get("chunk") or "", entry.name, stat))
        except OSError as err:
            raise StoreUnavailable(f"cannot read the source folder {self.folder}: {err.strerror}") from err
        if seen and not groups:
            log.warning("none of the %d names in %s is of the form %s", seen, self.folder, self.config.pattern)
        refs: Sequence[VolumeRef] = [
            ref for (name, time), files in groups.items() for ref in self._refs(name.split("/")[0], time, files)
        ]
        if self.config.join == "cycle":
            refs = _with_what_lacks(refs)
        return sorted((r for r in refs if start <= r.nominal_time <= end), key=lambda r: (r.nominal_time, r.key))

    @property
    def _cycle(self) -> timedelta:
        return timedelta(minutes=self.config.cycle_minutes)

    def _time(self, text: str | None, entry: "os.DirEntry[str]", stat: os.stat_result) -> datetime:
        """From the name, else from the header, else that of the file's arrival.

        Raises:
            BadInput: the name has another form.
        """
        if text is None:
            found = _header_time(entry.path, stat.st_size, stat.st_mtime_ns)
            # without one it is refused when it is read, so that it does not pass unnoticed
            return datetime.fromtimestamp(stat.st_mtime, UTC) if isinstance(found, str) else found
        try:
            found_time = datetime.strptime(text, self.config.time_format).replace(tzinfo=UTC)
            if found_time.year not in times.YEARS:
                raise ValueError(f"the year is {found_time.year}")
            return found_time
        except ValueError as err:
            raise BadInput(f"{entry.name}: its time {text!r} is not of the form {self.config.time_format}") from err

    def _refs(self, radar: str, time: datetime, files: Sequence[_File]) -> Sequence[VolumeRef]:
        files = sorted(files, key=lambda f: (_in_order(f[0]), f[1]))
        members = tuple(name for _, name, _ in files)
        stamp = " ".join(f"{name}-{stat.st_size}-{stat.st_mtime_ns}" for _, name, stat in files)
        etag = hashlib.sha256(stamp.encode()).hexdigest()[:16]
        size = sum(stat.st_size for _, _, stat in files)
        arrived = datetime.fromtimestamp(max(stat.st_mtime for _, _, stat in files), UTC)
        if len(members) == 1 and self.config.join == "none":
            parts = range(self.config.scans_per_file)
            step = timedelta(minutes=self.config.scan_minutes)
            keys = [members[0] + (f"#{n}" if len(parts) > 1 else "") for n in parts]
            return [
                VolumeRef(key, time + n * step, size, etag, arrived, radar, members, n)
                for n, key in zip(parts, keys, strict=True)
            ]
        if self.config.join == "cycle":
            open_until = time + self._cycle
        else:  # the pieces of a volume follow each other in seconds; an old one is not waited for
            open_until = min(arrived + PIECES_FOLLOW_WITHIN, time + LONGEST_VOLUME)
        key = f"{radar}_{times.compact(time)}"
        return [VolumeRef(key, time, size, etag, arrived, radar, members, open_until=open_until)]

    def files(self, ref: VolumeRef) -> Sequence[Path]:
        """Files of a volume that the quarantine should keep."""
        return [] if ref.size > self.max_bytes else [self.folder / name for name in ref.members]

    def read(self, ref: VolumeRef, scratch: Path) -> Volume:
        """Decode a volume.

        Raises:
            BadInput: nothing of it can be used.
            OSError: a file could not be read; worth another try.
        """
        if ref.size > self.max_bytes:
            raise BadInput(f"{ref.key}: {ref.size} bytes, more than the {self.max_bytes} allowed (max_file_mb)")
        site = self.config.sites.get(ref.radar)
        options = DecodeOptions(
            site=None if site is None else Site(site.longitude, site.latitude, site.altitude_m),
            reliable_times=self.config.reliable_times,
            part=(ref.part, self.config.scans_per_file),
            max_bytes=self.max_bytes,
        )
        paths = self.files(ref)
        if self.config.join == "chunks":
            joined = scratch / hashlib.sha256(ref.key.encode()).hexdigest()
            with joined.open("wb") as target:
                for path in paths:
                    target.write(whole_records(path.read_bytes()))
            try:
                return read_volume(joined, ref.radar, ref.nominal_time, options, ref.key)
            finally:
                joined.unlink()
        if len(paths) == 1:
            return read_volume(paths[0], ref.radar, ref.nominal_time, options)
        return _joined([_read_or_why(path, ref, options) for path in paths], ref)


def _with_what_lacks(cycles: Sequence[VolumeRef]) -> Sequence[VolumeRef]:
    """Cycles that have fewer files than is usual for their radar say so."""
    usual: dict[str, Counter[int]] = defaultdict(Counter)
    for ref in cycles:
        usual[ref.radar][len(ref.members)] += 1
    found = []
    for ref in cycles:
        count, most = len(ref.members), max(usual[ref.radar], key=lambda n: (usual[ref.radar][n], n))
        lacks = f"{count} files of the cycle, others have {most}" if count < most else ""
        found.append(replace(ref, lacks=lacks))
    return found


@lru_cache(maxsize=10000)
def _header_time(path: str, size: int, changed_ns: int) -> datetime | str:
    """The time in a file's header, read once as long as the file is the same; or why there is none."""
    try:
        return header_time(Path(path))
    except BadInput as err:
        return str(err)


def _in_order(chunk: str) -> tuple[int, str]:
    """Numbers by their value (9 comes before 10), then text."""
    return (int(chunk), "") if chunk.isdecimal() else (0, chunk)


def _read_or_why(path: Path, ref: VolumeRef, options: DecodeOptions) -> Volume | str:
    try:
        return read_volume(path, ref.radar, ref.nominal_time, options)
    except BadInput as err:
        return str(err)
    except (OSError, MemoryError):
        raise
    except Exception as err:
        # one sweep that a decoder has no words for must not cost the others
        log.exception("decoding %s failed", path.name)
        return f"{path.name}: cannot be decoded: {type(err).__name__}: {err}"


def _joined(parts: list[Volume | str], ref: VolumeRef) -> Volume:
    """One volume from files of a sweep each; a bad one is a defect of the volume."""
    volumes = [part for part in parts if isinstance(part, Volume)]
    bad = tuple(part for part in parts if isinstance(part, str))
    if not volumes:
        raise BadInput(f"{ref.key}: none of its files can be used: {'; '.join(bad)[:500]}")
    sweeps, clocks = of_one_scan(sorted((s for v in volumes for s in v.sweeps), key=lambda s: (s.time, s.elevation)))
    defects = (*bad, *clocks, *(d for v in volumes for d in v.defects))
    return Volume(ref.radar, volumes[0].site, tuple(sweeps), defects)

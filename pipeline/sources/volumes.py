"""Received polar volumes: which files make up a volume, and when and by which radar it was measured."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import times
from pipeline.errors import BadInput
from pipeline.radar.decode import DecodeOptions, of_one_scan, read_volume
from pipeline.radar.formats import pass_machine_fault
from pipeline.radar.moments import filtered_where_both
from pipeline.radar.recognise import header_time
from pipeline.radar.volume import Site, Volume
from pipeline.source_settings import VolumesSource
from pipeline.sources.contract import FileInfo, VolumeRef
from pipeline.sources.files import open_files

log = logging.getLogger(__name__)

# pieces of a volume come every few seconds; a volume without its end is taken after this time
PIECES_FOLLOW_WITHIN, LONGEST_VOLUME = timedelta(seconds=60), timedelta(minutes=15)
# of a radar, as the catalog keeps it
LONGEST_NAME = 40

# how many files a cycle has is learnt from those of this time around the window
USUAL_WITHIN = timedelta(hours=1)


class _File(NamedTuple):
    chunk: str
    is_end: bool
    info: FileInfo


class VolumeFiles:
    """Lists volumes like any source; what it fetches is decoded to a ``Volume`` instead of a field."""

    def __init__(self, config: VolumesSource) -> None:
        self.config = config
        self.where = open_files(config)
        self.pattern = re.compile(config.pattern)
        self.max_bytes = int(config.max_file_mb * 2**20)
        # files of a name outside the window may be of volumes inside it
        self.margin = {
            "none": config.scans_per_file * timedelta(minutes=config.scan_minutes),
            "chunks": timedelta(0),
            "cycle": USUAL_WITHIN,
        }[config.join]

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
        """Volumes with a nominal time in [start, end], ordered by time, then key; other names are left alone.

        Args:
            warn: is told what keeps the source from giving anything: that no name fits.

        Raises:
            StoreUnavailable: the place cannot be read.
        """
        groups: dict[tuple[str, str, datetime], Any] = defaultdict(list)
        seen, ours, example = 0, 0, ""
        refused: tuple[str, ...] = ()
        strangers: Counter[str] = Counter()
        first, last = start - self.margin, end + self.margin
        alone_here = self.config.radars[0] if len(self.config.radars) == 1 else "radar"
        for file in self.where.list(first, last):
            seen += 1
            example = min(example or file.below, file.below)
            name = file.below if "/" in self.config.pattern else file.below.rpartition("/")[2]
            match = self.pattern.fullmatch(name)
            if match is None:
                continue
            ours += 1
            found = match.groupdict()
            radar = found.get("radar") or file.radar or alone_here
            try:
                time = self._time(found.get("time"), file)
                if not first <= time <= last:
                    continue
                if len(radar) > LONGEST_NAME:
                    raise BadInput(f"{file.key}: the name of its radar is longer than {LONGEST_NAME}")
            except BadInput as err:
                log.warning("left alone: %s", err)
                refused = (*refused, str(err))
                continue
            except OSError as err:  # a header could not be read; that may pass
                log.warning("left for the next look: %s", err)
                continue
            if self.config.radars and radar not in self.config.radars:
                strangers[radar] += 1
                continue
            if self.config.join == "cycle":
                time = times.EPOCH + (time - times.EPOCH) // self._cycle * self._cycle
            alone = "" if self.config.join != "none" else file.key
            groups[radar, alone, time].append(_File(found.get("chunk") or "", found.get("end") is not None, file))
        if seen and not ours:
            warn(
                f"none of the {seen} names in {self.where.place} is of the form {self.config.pattern} (pattern), "
                f"for example {example}"
            )
        elif refused and len(refused) == ours:
            warn(f"none of the {ours} names in {self.where.place} can be placed in time: {refused[0]}")
        if strangers:
            who = ", ".join(sorted(strangers)[:10])
            log.warning("left alone: %d files of radars that are not in radars: %s", strangers.total(), who)
        refs: Sequence[VolumeRef] = [
            ref for (radar, _, time), files in groups.items() for ref in self._refs(radar, time, files)
        ]
        if self.config.join == "cycle":
            refs = _with_what_lacks(refs)
        return sorted((r for r in refs if start <= r.nominal_time <= end), key=lambda r: (r.nominal_time, r.key))

    @property
    def _cycle(self) -> timedelta:
        return timedelta(minutes=self.config.cycle_minutes)

    def _time(self, text: str | None, file: FileInfo) -> datetime:
        """From the name, else from the header, else that of the file's arrival.

        Raises:
            BadInput: the name has another form.
            OSError: the header could not be read; worth another try.
        """
        if text is None:
            found = _header_time(str(Path(self.config.uri) / file.key), file.stamp)
            # without one it is refused when it is read, so that it does not pass unnoticed
            return file.arrived_at if isinstance(found, str) else found
        time = _parsed(text, self.config.time_format)
        if time is None:
            raise BadInput(f"{file.key}: its time {text!r} is not of the form {self.config.time_format}")
        return time

    def _refs(self, radar: str, time: datetime, files: Sequence[_File]) -> Sequence[VolumeRef]:
        files = sorted(files, key=lambda f: (_in_order(f.chunk), f.info.key))
        members = tuple(file.info.key for file in files)
        stamps = tuple(file.info.stamp for file in files)
        stamp = " ".join(f"{name}-{stamp}" for name, stamp in zip(members, stamps, strict=True))
        etag = hashlib.sha256(stamp.encode()).hexdigest()[:16]
        size = sum(file.info.size for file in files)
        arrived = max(file.info.arrived_at for file in files)
        if len(members) == 1 and self.config.join == "none":
            parts = range(self.config.scans_per_file)
            step = timedelta(minutes=self.config.scan_minutes)
            keys = [members[0] + (f"#{n}" if len(parts) > 1 else "") for n in parts]
            return [
                VolumeRef(key, time + n * step, size, etag, arrived, radar, members, stamps, n)
                for n, key in zip(parts, keys, strict=True)
            ]
        if self.config.join == "cycle":
            open_until: datetime | None = time + self._cycle
        elif _is_whole(files):
            open_until = None
        else:  # the pieces of a volume follow each other in seconds; an old one is not waited for
            open_until = min(arrived + PIECES_FOLLOW_WITHIN, time + LONGEST_VOLUME)
        key = f"{radar}_{times.compact(time)}"
        return [VolumeRef(key, time, size, etag, arrived, radar, members, stamps, open_until=open_until)]

    def files(self, ref: VolumeRef, scratch: Path) -> Sequence[Path]:
        """Those of a volume that the quarantine should keep, or copies; not what is too large or has left.

        Raises:
            OSError: one could not be read; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        kept: Sequence[Path] = []
        if ref.size > self.max_bytes:
            return kept
        for n, (member, stamp) in enumerate(zip(ref.members, ref.stamps, strict=True)):
            folder = scratch / f"member{n}"
            folder.mkdir()
            try:
                kept = [*kept, *self.where.fetch([member], [stamp], folder, self.max_bytes)]
            except (BadInput, FileNotFoundError) as err:
                log.warning("not kept: %s: %s", member, err)
        return kept

    def read(self, ref: VolumeRef, scratch: Path) -> Volume:
        """Decode a volume.

        Raises:
            BadInput: nothing of it can be used.
            OSError: a file could not be read; worth another try.
            StoreUnavailable: the place cannot be read.
        """
        if ref.size > self.max_bytes:
            raise BadInput(f"{ref.key}: {ref.size} bytes, more than the {self.max_bytes} allowed (max_file_mb)")
        site = self.config.sites.get(ref.radar)
        options = DecodeOptions(
            site=None if site is None else Site(site.longitude, site.latitude, site.altitude_m),
            reliable_times=self.config.reliable_times,
            part=(ref.part, self.config.scans_per_file),
            max_bytes=self.max_bytes,
            rstart_unit=self.config.rstart_unit,
        )
        paths = self.where.fetch(ref.members, ref.stamps, scratch, self.max_bytes)
        if self.config.join == "chunks":
            joined = scratch / hashlib.sha256(ref.key.encode()).hexdigest()
            with joined.open("wb") as target:
                for path in paths:
                    target.write(path.read_bytes())
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


def _is_whole(files: Sequence[_File]) -> bool:
    """The last chunk says that it is the last, and those before it are there, counted from 1."""
    last = files[-1]
    return last.is_end and last.chunk.isdecimal() and int(last.chunk) == len(files)


@lru_cache(maxsize=100_000)
def _parsed(text: str, time_format: str) -> datetime | None:
    """The time in a name, UTC unless it has an offset; read once while a process polls. None if it has another form."""
    try:
        found = datetime.strptime(text, time_format)  # noqa: DTZ007 - where it has no offset, UTC is put in
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found.year in times.YEARS else None


@lru_cache(maxsize=10000)
def _header_time(path: str, stamp: str) -> datetime | str:
    """The time in a file's header, read once as long as the file is the same; or why there is none.

    Raises:
        OSError: it could not be read; that is not remembered.
    """
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
        pass_machine_fault(err, path.name)
        # one sweep that a decoder has no words for must not cost the others
        log.exception("decoding %s failed", path.name)
        return f"{path.name}: cannot be decoded: {type(err).__name__}: {err}"


def _joined(parts: list[Volume | str], ref: VolumeRef) -> Volume:
    """One volume from files of a sweep each; a bad one is a defect of the volume."""
    volumes = [part for part in parts if isinstance(part, Volume)]
    bad = tuple(part for part in parts if isinstance(part, str))
    if not volumes:
        raise BadInput(f"{ref.key}: none of its files can be used: {'; '.join(bad)[:500]}")
    together = sorted((s for v in volumes for s in v.sweeps), key=lambda s: (s.time, s.elevation))
    sweeps, clocks = of_one_scan(filtered_where_both(together))
    defects = (*bad, *clocks, *(d for v in volumes for d in v.defects))
    return Volume(ref.radar, volumes[0].site, tuple(sweeps), defects)

"""The archive of measured frames: one Zarr store per domain and day, one object per frame.

``frames`` (slot, plane, y, x) uint8: a plane of pixels for each product of the domain, then the states of the cells;
slot n of a day is midnight + n cadences.
The chunk is one slot, so a frame is one file that is replaced atomically and two writers never share one.
A day that is over may be compacted: then ``packed`` is an array of the same shape in one object
(``pipeline.compaction``). A frame is looked for in ``frames`` first, so one that comes late is a single object again.
"""

import hashlib
import json
import logging
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from pipeline import times
from pipeline.domain import Domain
from pipeline.errors import BadInput, DamagedFrame, SettingsError, StoreUnavailable, machine_fault
from pipeline.frames import packed
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import NEVER_WRITTEN, Frame
from pipeline.frames.zarr_stores import zarr_store
from pipeline.grid_checks import grid_fault, same_projection
from pipeline.storage import Store

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# without the checksum a flipped bit decodes to other rain
_CODECS = (BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"), Crc32cCodec())


class Archive:
    """Frames of one domain.

    Args:
        remember: frames that were read, for a batch of cycles that share most of them; not for longer, since a frame
            may be replaced.
    """

    def __init__(self, store: Store, domain: Domain, remember: bool = False) -> None:
        self.store = store
        self.folder = store.archive(domain.name)
        self.domain = domain
        self._about = self.folder / "about.json"
        self._source: FrameSource | None = None
        self._opened: dict[tuple[datetime, str], Any] = {}
        self._remembered: dict[datetime, Frame | None] | None = {} if remember else None

    def write(self, time: datetime, frame: Frame, source: FrameSource) -> str:
        """Write or replace the frame of an instant of the axis; durable on return.

        Returns:
            SHA-256 of the frame.

        Raises:
            BadInput: the frame is on another grid, or of another kind, than those of the archive.
            SettingsError: the archive was made with other settings.
            StoreUnavailable: it cannot be written.
        """
        day, slot = self._slot(time)
        path = self._path(day)
        try:
            standing = self.source()
            if standing is None:
                if fault := grid_fault(source.grid):
                    raise BadInput(f"the grid cannot be used: {fault}")
                self._write_about(source)
            elif difference := standing.difference(source, self.domain.cadence):
                raise BadInput(f"not like the frames of {self.domain.name}: {difference}; this one has {source}")
            elif source.quantity and not standing.quantity:  # it was not kept before there was a choice
                self._write_about(replace(standing, quantity=source.quantity))
            if not self.store.has(path / "frames" / "zarr.json"):  # asked every time: old days are removed meanwhile
                self._create(path, self._attributes(source), frame.state.shape)
            self._open(day, "frames")[slot] = np.concatenate((frame.pixels, frame.state[None]))
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            raise StoreUnavailable(f"cannot write the frame {times.iso(time)} to {path}: {err}") from err
        return checksum(frame)

    def read(self, time: datetime) -> Frame | None:
        """The frame of an instant; None if there is none.

        Raises:
            DamagedFrame: its object cannot be decoded: a wrong checksum, or a codec that gives up.
            StoreUnavailable: the machine cannot read it; the frame may be whole.
            SettingsError: the archive was made with other settings.
        """
        if self._remembered is None:
            return self._read(time)
        if time not in self._remembered:
            self._remembered[time] = self._read(time)
        return self._remembered[time]

    def _read(self, time: datetime) -> Frame | None:
        day, slot = self._slot(time)
        self.source()
        try:
            return self._read_once(day, slot)
        except DamagedFrame:
            # a packed day may have been replaced between the reads of its index and of the frame
            return self._read_once(day, slot)

    def _read_once(self, day: datetime, slot: int) -> Frame | None:
        objects = self.objects(day)
        try:
            planes = np.asarray(self._open(day, "frames")[slot]) if objects.has_single(slot) else None
            if planes is None or planes[-1, 0, 0] == NEVER_WRITTEN:  # or it was compacted a moment ago
                return self._read_packed(objects, day, slot)
        except (RuntimeError, ValueError, OSError, KeyError) as err:
            time = times.iso(day + slot * self.domain.cadence)
            if fault := machine_fault(err):
                raise StoreUnavailable(f"cannot read the frame {time} in {self._path(day)}: {fault}") from err
            raise DamagedFrame(f"the frame {time} in {self._path(day)} is damaged: {err}") from err
        return Frame(planes[:-1], planes[-1])

    def _read_packed(self, objects: packed.DayObjects, day: datetime, slot: int) -> Frame | None:
        if not objects.is_packed():
            return None
        planes = np.asarray(self._open(day, packed.ARRAY)[slot])
        return None if planes[-1, 0, 0] == NEVER_WRITTEN else Frame(planes[:-1], planes[-1])

    def read_packed(self, time: datetime) -> Frame | None:
        """The frame of an instant as the packed object of its day has it; None if that has none.

        Raises:
            ValueError, OSError, RuntimeError: it is damaged.
        """
        day, slot = self._slot(time)
        return self._read_packed(self.objects(day), day, slot)

    def set_aside(self, time: datetime) -> list[datetime]:
        """Move the damaged object of a frame to the quarantine, so that its source can be taken in again.

        Returns:
            The instants without a frame now: this one; if the index of a packed day is damaged, all that had no object
            of their own.
        """
        day, slot = self._slot(time)
        target = self.store.quarantine(self.domain.name, f"frame_{times.compact(time)}", uuid.uuid4().hex)
        objects = self.objects(day)
        frames: dict[int, bytes] | None
        try:
            frames = objects.packed_frames()  # before anything is moved: what cannot be read now is tried again
        except ValueError:
            frames = None
        try:
            if objects.has_single(slot):
                self.store.move(self._object(day, slot), target)  # at once, so that a reader finds the frame or nothing
        except FileNotFoundError:
            return [time]  # another process was first
        if frames is None:
            return self._set_aside_packed(day, time)
        if (encoded := frames.pop(slot, None)) is not None:  # it must not come back when the single one is gone
            if not self.store.has(target):
                with self.store.publish(target) as temporary:
                    temporary.write_bytes(encoded)
            objects.pack(frames)
        return [time]

    def _set_aside_packed(self, day: datetime, time: datetime) -> list[datetime]:
        """Move a packed object that cannot be read at all to the quarantine."""
        objects = self.objects(day)
        kept = self.store.quarantine(self.domain.name, f"frames_{day:%Y%m%d}", uuid.uuid4().hex)
        with self.store.publish(kept) as temporary:
            temporary.write_bytes(objects.packed_bytes())
        objects.pack({})
        singles = objects.singles()
        slots = [slot for slot in range(objects.slots) if slot not in singles]
        return sorted({time, *(day + slot * self.domain.cadence for slot in slots)})

    def source(self) -> FrameSource | None:
        """What all frames share; None if there is no frame yet.

        Raises:
            SettingsError: the archive was made with other settings than the domain has now.
            StoreUnavailable: it has a format that this version does not read, or the machine cannot read it.
        """
        if self._source is None:
            try:
                found = json.loads(self.store.read(self._about))
            except FileNotFoundError:
                return None
            except ValueError as err:
                raise StoreUnavailable(f"{self._about} is damaged: {err}") from err
            if found.get("format_version") != FORMAT_VERSION:
                raise StoreUnavailable(
                    f"{self._about} has archive format {found.get('format_version')}, "
                    f"this version reads {FORMAT_VERSION}"
                )
            for key, wanted in self._settings().items():
                if not _same(found["settings"][key], wanted):
                    raise SettingsError(
                        f"domains.{self.domain.name}.{key} is now {wanted}, but the archive {self.folder} "
                        f"was made with {found['settings'][key]}; use another root or another domain name"
                    )
            self._source = FrameSource.from_json(found["source"])
        return self._source

    def times(self) -> list[datetime]:
        """Instants of all frames in the archive, in order."""
        self.source()
        return [time for day in self.days() for time in self.times_of(day)]

    def days(self) -> list[datetime]:
        """Midnights of all days in the archive, in order."""
        inside = self.store.folders
        months = [(year, month) for year in inside(self.folder) for month in inside(self.folder / year)]
        days = [(*month, day) for month in months for day in inside(self.folder.joinpath(*month))]
        return [times.parse_time("-".join(day).removesuffix(".zarr")) for day in days if day[-1].endswith(".zarr")]

    def times_of(self, day: datetime) -> list[datetime]:
        """Instants of the frames of a day, in order, without those of a packed object whose index is damaged."""
        objects = self.objects(day)
        slots = objects.singles()
        try:
            slots |= objects.packed()
        except ValueError as err:
            log.warning("%s: %s; its frames are read from the source again when they are asked for", day.date(), err)
        return [day + slot * self.domain.cadence for slot in sorted(slots)]

    def written_at(self, time: datetime) -> float:
        """When the frame of an instant was written, seconds since 1970; 0 if its day is compacted, or there is none."""
        day, slot = self._slot(time)
        found = self.store.listed(self._path(day) / "frames" / "c" / str(slot))
        return max((file.written_at for file in found), default=0.0)

    def objects(self, day: datetime) -> packed.DayObjects:
        """The objects of a day."""
        return packed.DayObjects(zarr_store(self.store, self._path(day)), timedelta(days=1) // self.domain.cadence)

    def prepare_packed(self, day: datetime) -> None:
        """Describe the packed object of a day, before there is one."""
        if not self.objects(day).has(f"{packed.ARRAY}/zarr.json"):
            group = zarr.open_group(zarr_store(self.store, self._path(day)), mode="r+", zarr_format=3)
            packed.create_packed(group, _CODECS, NEVER_WRITTEN)

    def _path(self, day: datetime) -> Path:
        return self.folder / f"{day:%Y/%m/%d}.zarr"

    def _object(self, day: datetime, slot: int) -> Path:
        """The one object of a frame."""
        return self._path(day) / "frames" / "c" / str(slot) / "0" / "0" / "0"

    def _slot(self, time: datetime) -> tuple[datetime, int]:
        if not times.is_slot(time, self.domain.cadence):
            raise ValueError(f"{times.iso(time)} is not on the {self.domain.cadence_minutes}-minute axis")
        day = times.day_of(time)
        return day, (time - day) // self.domain.cadence

    def _settings(self) -> dict[str, Any]:
        """The settings that frames depend on."""
        return self.domain.model_dump(mode="json", include={"cadence_minutes", "grid", "scale", "zr", "product"})

    def _write_about(self, source: FrameSource) -> None:
        about = {"format_version": FORMAT_VERSION, "settings": self._settings(), "source": source.to_json()}
        with self.store.publish(self._about) as path:
            path.write_text(json.dumps(about, indent=2) + "\n")
        self._source = source

    def _attributes(self, source: FrameSource) -> dict[str, Any]:
        """A day's store describes itself, for those who open it without us."""
        return {
            "format_version": FORMAT_VERSION,
            "domain": self.domain.name,
            **self._settings(),
            **source.to_json(),
            "planes": [*self.domain.products, "state"],
            "state_meanings": "0 echo, 1 no coverage, 2 no echo, 3 advected, 4 removed, 255 never written",
        }

    def _create(self, path: Path, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Write the metadata. Two processes that do so at once write the same bytes."""
        slots, planes = timedelta(days=1) // self.domain.cadence, len(self.domain.products) + 1
        try:
            group = zarr.open_group(zarr_store(self.store, path), mode="a", zarr_format=3, attributes=attributes)
            group.create_array(
                "frames",
                shape=(slots, planes, *shape),
                chunks=(1, planes, *shape),
                dtype="uint8",
                fill_value=NEVER_WRITTEN,
                compressors=_CODECS,
                dimension_names=("slot", "plane", "y", "x"),
            )
        except (ContainsArrayError, ContainsGroupError):
            return  # another process was first

    def _open(self, day: datetime, array: str) -> Any:
        if (day, array) not in self._opened:
            try:
                self._opened[day, array] = self._array(day, array)
            except (FileNotFoundError, KeyError, ValueError, TypeError) as err:
                log.warning("the description of %s cannot be read and is written again: %s", self._path(day), err)
                self._describe_again(day)
                self._opened[day, array] = self._array(day, array)
        return self._opened[day, array]

    def _array(self, day: datetime, array: str) -> Any:
        return zarr.open_group(zarr_store(self.store, self._path(day)), mode="r+", zarr_format=3)[array]

    def _describe_again(self, day: datetime) -> None:
        """Replace lost or damaged metadata of a day: they follow from the settings, and the frames may be whole."""
        source, objects = self.source(), self.objects(day)
        if source is None:
            raise StoreUnavailable(f"{self._about} is lost, and {self._path(day)} cannot be read without it")
        for name in ("", "frames/", f"{packed.ARRAY}/"):
            objects.remove_description(name)
        self._create(self._path(day), self._attributes(source), source.grid.shape)
        if objects.is_packed():
            self.prepare_packed(day)


def checksum(frame: Frame) -> str:
    """SHA-256 of pixels and states."""
    digest = hashlib.sha256(frame.pixels.tobytes())
    digest.update(frame.state.tobytes())
    return digest.hexdigest()


def _same(found: Any, wanted: Any) -> bool:
    """Equal, up to the last digits of floats and to the words for one projection."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return False
        if found.get("crs") != wanted.get("crs") and same_projection(found["crs"], wanted["crs"]):
            found = found | {"crs": wanted["crs"]}
        return all(_same(found[k], wanted[k]) for k in found)
    if isinstance(found, float) or isinstance(wanted, float):
        return bool(np.isclose(found, wanted, rtol=1e-9, atol=1e-6))
    return json.dumps(found) == json.dumps(wanted)

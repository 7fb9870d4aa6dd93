"""The archive of measured frames: one Zarr store per domain and day, one object per frame.

``frames`` (slot, plane, y, x) uint8 with the planes ``pixel`` and ``state``; slot n of a day is midnight + n cadences.
The chunk is one slot, so a frame is one file that is replaced atomically and two writers never share one.
"""

import asyncio
import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import LocalStore

from pipeline import times
from pipeline.errors import StoreUnavailable
from pipeline.frames.grayscale import NEVER_WRITTEN, Frame
from pipeline.grids import Grid
from pipeline.settings import Domain
from pipeline.storage import Store

FORMAT_VERSION = 1
PLANES = ("pixel", "state")


class _DurableFolder(LocalStore):
    """Zarr objects through ``Store.publish``: atomic, flushed to disk, temporaries that name their process."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(folder)
        self._store = store

    async def set(self, key: str, value: Buffer) -> None:
        def publish() -> None:
            with self._store.publish(self.root / key) as path:
                path.write_bytes(value.as_buffer_like())

        await asyncio.to_thread(publish)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not (self.root / key).exists():
            await self.set(key, value)


class Archive:
    """Frames of one domain."""

    def __init__(self, store: Store, domain: Domain) -> None:
        self.store = store
        self.folder = store.archive(domain.name)
        self.domain = domain
        self._opened: dict[datetime, tuple[Any, dict[str, Any]]] = {}

    def write(self, time: datetime, frame: Frame, grid: Grid, floor_mm_h: float) -> str:
        """Write or replace the frame of an instant of the axis; durable on return.

        Returns:
            SHA-256 of the frame.

        Raises:
            StoreUnavailable: the day was archived with another grid, cadence or scale, or cannot be written.
        """
        day, slot = self._slot(time)
        wanted = self._attributes(grid, floor_mm_h)
        path = self._path(day)
        try:
            if day not in self._opened and not (path / "frames" / "zarr.json").is_file():
                self._create(path, day, wanted, frame.pixels.shape)
            array, found = self._open(day)
            for key in ("grid", "cadence_minutes", "scale", "zr", "drizzle_floor_mm_h", "product"):
                if not _same(found[key], wanted[key]):
                    raise StoreUnavailable(
                        f"{path} was archived with {key} {found[key]}, the settings now give {wanted[key]}; "
                        "use another root, or the settings it was made with"
                    )
            array[slot] = np.stack((frame.pixels, frame.state))
        except OSError as err:
            raise StoreUnavailable(f"cannot write the frame {times.iso(time)} to {path}: {err}") from err
        return checksum(frame)

    def read(self, time: datetime) -> Frame | None:
        """The frame of an instant; None if there is none."""
        day, slot = self._slot(time)
        if not (self._path(day) / "frames" / "c" / str(slot)).is_dir():
            return None
        array, _ = self._open(day)
        planes = np.asarray(array[slot])
        if planes[1, 0, 0] == NEVER_WRITTEN:
            return None
        return Frame(planes[0], planes[1])

    def describe(self, time: datetime) -> dict[str, Any]:
        """Attributes of the day's store: grid, cadence, scale, zr, drizzle floor, product."""
        return dict(self._open(times.day_of(time))[1])

    def grid(self, time: datetime) -> Grid:
        """The grid of the frames of that day."""
        return Grid.from_json(self.describe(time)["grid"])

    def times(self) -> list[datetime]:
        """Instants of all frames in the archive, in order."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*/[0-9]*/[0-9]*.zarr")):
            day = times.parse_time("-".join((path.parts[-3], path.parts[-2], path.stem)))
            slots = sorted(int(p.name) for p in (path / "frames" / "c").glob("[0-9]*"))
            found += [day + slot * self.domain.cadence for slot in slots]
        return found

    def _path(self, day: datetime) -> Path:
        return self.folder / f"{day:%Y/%m/%d}.zarr"

    def _slot(self, time: datetime) -> tuple[datetime, int]:
        if not times.is_slot(time, self.domain.cadence):
            raise ValueError(f"{times.iso(time)} is not on the {self.domain.cadence_minutes}-minute axis")
        day = times.day_of(time)
        return day, (time - day) // self.domain.cadence

    def _attributes(self, grid: Grid, floor_mm_h: float) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "domain": self.domain.name,
            "product": self.domain.product,
            "cadence_minutes": self.domain.cadence_minutes,
            "grid": grid.to_json(),
            "scale": self.domain.scale.model_dump(),
            "zr": self.domain.zr.model_dump(),
            "drizzle_floor_mm_h": round(floor_mm_h, 6),
            "planes": list(PLANES),
            "state_meanings": "0 echo, 1 no coverage, 2 no echo, 3 advected, 4 removed, 255 never written",
        }

    def _create(self, path: Path, day: datetime, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Write the metadata. Two processes that do so at once write the same bytes."""
        slots = timedelta(days=1) // self.domain.cadence
        try:
            group = zarr.open_group(_DurableFolder(self.store, path), mode="a", attributes=attributes)
            group.create_array(
                "frames",
                shape=(slots, len(PLANES), *shape),
                chunks=(1, len(PLANES), *shape),
                dtype="uint8",
                fill_value=NEVER_WRITTEN,
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
                dimension_names=("slot", "plane", "y", "x"),
                attributes=attributes,
            )
        except (ContainsArrayError, ContainsGroupError):
            return  # another process was first

    def _open(self, day: datetime) -> tuple[Any, dict[str, Any]]:
        if day not in self._opened:
            group = zarr.open_group(_DurableFolder(self.store, self._path(day)), mode="r+")
            array = group["frames"]
            attributes = dict(array.attrs)
            if attributes.get("format_version") != FORMAT_VERSION:
                raise StoreUnavailable(
                    f"{self._path(day)} has archive format {attributes.get('format_version')}, this version reads "
                    f"{FORMAT_VERSION}"
                )
            self._opened[day] = (array, attributes)
        return self._opened[day]


def checksum(frame: Frame) -> str:
    """SHA-256 of pixels and states."""
    digest = hashlib.sha256(frame.pixels.tobytes())
    digest.update(frame.state.tobytes())
    return digest.hexdigest()


def _same(found: Any, wanted: Any) -> bool:
    """Equal, up to the last digits of floats."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[k], wanted[k]) for k in found)
    if isinstance(found, float) or isinstance(wanted, float):
        return bool(np.isclose(found, wanted, rtol=1e-9, atol=1e-6))
    return json.dumps(found) == json.dumps(wanted)

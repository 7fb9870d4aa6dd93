"""A day of frames as objects: one for each frame, and, once the day is compacted, one for all of them.

The packed object holds the encoded frames one after the other, then an index: a shard as Zarr 3 defines it. Compaction
copies encoded frames, it never encodes anew. Where a frame has an object of its own, that one is newer and counts.
"""

import re
import struct
from collections.abc import Mapping
from typing import Any

import google_crc32c
from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

ARRAY = "packed"
_OBJECT = f"{ARRAY}/c/0/0/0/0"
_SINGLE = re.compile(r"frames/c/(\d+)/0/0/0")
_ABSENT = 2**64 - 1  # offset and length of a slot without a frame


class DayObjects:
    """The objects of one day in its Zarr store; ``slots`` frames fit into a day."""

    def __init__(self, objects: Store, slots: int) -> None:
        self.objects, self.slots = objects, slots

    def has(self, key: str) -> bool:
        """Whether there is an object of that key."""
        return bool(sync(self.objects.exists(key)))

    def has_single(self, slot: int) -> bool:
        """Whether a frame has an object of its own."""
        return self.has(_single(slot))

    def is_packed(self) -> bool:
        """Whether the day has a packed object."""
        return self.has(_OBJECT)

    def singles(self) -> set[int]:
        """Slots whose frame has an object of its own."""
        keys: list[str] = sync(_listed(self.objects, "frames/c/"))
        return {int(key.split("/")[2]) for key in keys if _SINGLE.fullmatch(key)}

    def packed(self) -> set[int]:
        """Slots of the packed object.

        Raises:
            ValueError: its index is damaged.
        """
        end = self._get(_OBJECT, SuffixByteRequest(_index_bytes(self.slots)))
        return set() if end is None else set(_read_index(end, self.slots))

    def packed_frames(self) -> dict[int, bytes]:
        """The encoded frames of the packed object, by slot.

        Raises:
            ValueError: its index is damaged.
        """
        content = self.packed_bytes()
        if not content and not self.is_packed():
            return {}
        index = _read_index(content[-_index_bytes(self.slots) :], self.slots)
        return {slot: content[where] for slot, where in index.items()}

    def packed_bytes(self) -> bytes:
        """The packed object as it is; empty if there is none."""
        return self._get(_OBJECT) or b""

    def single_frames(self) -> dict[int, bytes]:
        """The encoded frames that have objects of their own, by slot."""
        found = {slot: self._get(_single(slot)) for slot in sorted(self.singles())}
        return {slot: encoded for slot, encoded in found.items() if encoded is not None}

    def pack(self, frames: Mapping[int, bytes]) -> None:
        """Replace the packed object by one of these encoded frames; without any it is removed."""
        if not frames:
            sync(self.objects.delete(_OBJECT))
            return
        content = default_buffer_prototype().buffer.from_bytes(_assemble(frames, self.slots))
        sync(self.objects.set(_OBJECT, content))

    def remove_description(self, prefix: str) -> None:
        """Remove the metadata of the group, or of an array (``frames/``)."""
        sync(self.objects.delete(f"{prefix}zarr.json"))

    def remove_single(self, slot: int) -> None:
        """Remove the object of one frame."""
        sync(self.objects.delete_dir(f"frames/c/{slot}"))

    def remove_all(self) -> None:
        """Remove the day; a kill leaves a day that can still be read and written."""
        self.pack({})
        for folder in ("frames/c", "frames", ARRAY, ""):  # frames before the descriptions of what they are
            sync(self.objects.delete_dir(folder))

    def _get(self, key: str, part: ByteRequest | None = None) -> bytes | None:
        buffer = sync(self.objects.get(key, default_buffer_prototype(), part))
        return None if buffer is None else buffer.to_bytes()


def create_packed(group: Any, codecs: Any, fill: int) -> None:
    """The array whose only shard the packed object is, beside the array ``frames`` of a day's group."""
    frames = group["frames"]
    group.create_array(
        ARRAY,
        shape=frames.shape,
        chunks=frames.chunks,
        shards=frames.shape,
        dtype=frames.dtype,
        fill_value=fill,
        compressors=codecs,
        dimension_names=("slot", "plane", "y", "x"),
        attributes={"comment": "frames of a closed day in one object; those in the array frames are newer"},
    )


def _single(slot: int) -> str:
    return f"frames/c/{slot}/0/0/0"


async def _listed(objects: Store, prefix: str) -> list[str]:
    return [key async for key in objects.list_prefix(prefix)]


def _index_bytes(slots: int) -> int:
    return 16 * slots + 4


def _assemble(frames: Mapping[int, bytes], slots: int) -> bytes:
    parts, index, offset = [], [], 0
    for slot in range(slots):
        encoded = frames.get(slot)
        if encoded is None:
            index += [_ABSENT, _ABSENT]
            continue
        index += [offset, len(encoded)]
        parts.append(encoded)
        offset += len(encoded)
    table = struct.pack(f"<{2 * slots}Q", *index)
    return b"".join((*parts, table, struct.pack("<I", google_crc32c.value(table))))


def _read_index(end: bytes, slots: int) -> dict[int, slice]:
    if len(end) != _index_bytes(slots):
        raise ValueError(f"the index of a packed day has {len(end)} bytes, expected {_index_bytes(slots)}")
    table, (checksum,) = end[:-4], struct.unpack("<I", end[-4:])
    if google_crc32c.value(table) != checksum:
        raise ValueError("the index of a packed day does not have its checksum")
    values = struct.unpack(f"<{2 * slots}Q", table)
    pairs = zip(values[::2], values[1::2], strict=True)
    return {slot: slice(at, at + length) for slot, (at, length) in enumerate(pairs) if at != _ABSENT}

"""NEXRAD Level II files (interface control documents 2620010 and 2620002): what is whole in them, as xradar needs it.

A volume is a header and messages, in records of bzip2 or plain. Damaged records and bytes that are no messages are left
out, and what then begins and ends a sweep is marked as such: xradar would lose the volume, or take the rays of one
sweep for those of another.
"""

import bz2
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import BadInput, machine_fault
from pipeline.radar.formats import Budget, Readable, inflate

# bytes; the first messages tell of the radar and have one length each
VOLUME_HEADER, MESSAGE_HEADER, FIXED_MESSAGE, FIRST_MESSAGES = 24, 28, 2432, 134
_RECORD = re.compile(rb"BZh[1-9]1AY&SY")
# of a radial: first and last of an elevation, last of the volume
_FIRST, _LAST, END_OF_VOLUME = (0, 3, 5), (2, 4), 4
_KINDS = {*range(2, 19), 29, 32, 33}
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class _Radial:
    """Where a radial lies, and its marks."""

    start: int
    end: int
    status_at: int
    status: int
    elevation_number: int


@contextmanager
def whole_part(path: Path, name: str, max_bytes: int) -> Iterator[Readable]:
    """The file, or an unpacked copy of what is whole in it.

    Raises:
        BadInput: it is cut off before any radial, or more than ``max_bytes`` come out of it.
    """
    with TemporaryDirectory(prefix="volume-") as folder:
        defects: list[str] = []
        plain = Path(folder) / "volume"
        if not _unpack(path, plain, Budget(name, max_bytes), defects):
            plain = path
        if plain.stat().st_size <= VOLUME_HEADER:
            raise BadInput(f"{name}: the file is cut off or damaged: it holds no sweep, only a header")
        with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            kept, radials = _messages(data)
            if not radials:
                raise BadInput(f"{name}: the file is cut off or damaged: it holds no sweep, not even one radial")
            marks = _missing_marks(radials)
            first = [r for r in radials if marks.get(r.status_at, r.status) in _FIRST]
            gates = tuple(_gates_of_reflectivity(data, radial) for radial in first)
            # what fills up the end of a file is no loss
            lost = max(kept[-1][1], len(data[kept[-1][1] :].rstrip(b"\0")) + kept[-1][1]) - sum(e - s for s, e in kept)
            if marks or kept != [(0, len(data))]:
                mended = Path(folder) / "whole"
                with mended.open("wb") as target:
                    for start, end in kept:
                        target.write(data[start:end])
                _write_marks(mended, kept, marks)
                plain = mended
            if lost:
                defects.append(f"{lost} bytes that are no whole radials are left out")
        ended = radials[-1].status == END_OF_VOLUME  # else the strategy says how many sweeps there should be
        yield Readable(plain, 0 if ended else None, tuple(defects), gates=gates)


def _unpack(path: Path, target_path: Path, budget: Budget, defects: list[str]) -> bool:
    """Write the records of bzip2, if there are any, without those that are damaged; False if there are none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        packed = data[VOLUME_HEADER : VOLUME_HEADER + 4]
        starts = [found.start() for found in _RECORD.finditer(data)] if packed.strip(b"\0") else []
        if not starts:
            return False
        damaged = 0
        with target_path.open("wb") as target:
            target.write(data[:VOLUME_HEADER])
            if starts[0] > VOLUME_HEADER + 8:  # the first record is not even recognised
                target.write(bytes(FIRST_MESSAGES * FIXED_MESSAGE))
                damaged += 1
            for n, start in enumerate(starts):
                is_last = n + 1 == len(starts)
                mark, tool = target.tell(), bz2.BZ2Decompressor()
                try:
                    inflate(tool, data[start : len(data) if is_last else starts[n + 1] - 4], budget, target)
                    sound = tool.eof or is_last  # a file that is cut off gives what there is
                except OSError as err:
                    if machine_fault(err):
                        raise
                    sound = False
                if not sound:
                    damaged += 1
                    target.seek(mark)
                    target.truncate()
                    if target.tell() == VOLUME_HEADER:
                        target.write(bytes(FIRST_MESSAGES * FIXED_MESSAGE))
                elif is_last and tool.unused_data.strip(b"\0"):
                    defects.append(f"{len(tool.unused_data)} bytes behind the end of the volume are left out")
        if damaged:
            defects.append(f"{damaged} of {max(len(starts), damaged)} records are damaged and left out")
    return True


def _messages(data: mmap.mmap) -> tuple[list[tuple[int, int]], list[_Radial]]:
    """What of a plain volume is whole: parts of the file, from byte to byte, and the radials in them."""
    position = min(VOLUME_HEADER + FIRST_MESSAGES * FIXED_MESSAGE, len(data))
    if any(_radial(data, VOLUME_HEADER + n * FIXED_MESSAGE) for n in range(FIRST_MESSAGES)):
        position = VOLUME_HEADER  # volumes of before 2008 have radials from the beginning
    parts, radials, radar = [(0, position)], list[_Radial](), b""
    while position + MESSAGE_HEADER <= len(data):
        radial = _radial(data, position)
        end = radial.end if radial is not None else _other_end(data, position)
        if radial is not None and data[position + 15] == 31:
            radar = radar or data[position + MESSAGE_HEADER : position + MESSAGE_HEADER + 4]
            if radar != data[position + MESSAGE_HEADER : position + MESSAGE_HEADER + 4]:
                radial, end = None, 0
        if end:
            if radial is not None:
                radials.append(radial)
            if parts[-1][1] == position:
                parts[-1] = (parts[-1][0], end)
            else:
                parts.append((position, end))
            position = end
        elif radar:  # the name of the radar is in every radial
            found = data.find(radar, position + MESSAGE_HEADER + 1)
            position = found - MESSAGE_HEADER if found >= 0 else len(data)
        else:
            position += FIXED_MESSAGE
    return parts, radials


def _radial(data: mmap.mmap, start: int) -> _Radial | None:
    """The radial that begins at ``start``; None if there is none, or it is not whole."""
    if start + MESSAGE_HEADER + 68 > len(data):
        return None
    halfwords, _, kind = struct.unpack_from(">HBB", data, start + 12)
    body = start + MESSAGE_HEADER
    if kind == 31:
        end = start + 12 + 2 * halfwords
        clock, _, _, azimuth = struct.unpack_from(">IHHf", data, body + 4)
        status, number = data[body + 21], data[body + 22]
        (elevation,) = struct.unpack_from(">f", data, body + 24)
        sound = 0 <= azimuth <= 360 and -10 <= elevation <= 91 and end - body >= 68
        at = body + 21
    elif kind == 1:
        end = start + FIXED_MESSAGE
        clock, _, _, _, _, status, _, number = struct.unpack_from(">IHHHHHHH", data, body)
        sound, at = True, body + 13
    else:
        return None
    if not (sound and end <= len(data) and clock <= _DAY_MS and status & 0x7F <= 5 and 1 <= number <= 64):
        return None
    return _Radial(start, end, at, status & 0x7F, number)


def _gates_of_reflectivity(data: mmap.mmap, radial: _Radial) -> int:
    """How many gates of reflectivity a radial has; 0 if it does not say. xradar adds as many as velocity has more."""
    body = radial.start + MESSAGE_HEADER
    if data[radial.start + 15] == 1:
        return int(struct.unpack_from(">H", data, body + 26)[0])
    for pointer in struct.unpack_from(">9I", data, body + 32):
        if data[body + pointer : body + pointer + 4] == b"DREF" and body + pointer + 10 <= radial.end:
            return int(struct.unpack_from(">H", data, body + pointer + 8)[0])
    return 0


def _other_end(data: mmap.mmap, start: int) -> int:
    """Where a message that is no radial ends; 0 if it is no sound message, or not whole."""
    halfwords, _, kind, _, _, clock = struct.unpack_from(">HBBHHI", data, start + 12)
    end = start + FIXED_MESSAGE
    blank = kind == 0 and not data[start : start + MESSAGE_HEADER].strip(b"\0")
    sound = kind in _KINDS and 8 <= halfwords <= 1210 and clock <= _DAY_MS
    return end if (sound or (blank and data[end - 1 : end] == b"\0")) and end <= len(data) else 0


def _missing_marks(radials: list[_Radial]) -> dict[int, int]:
    """By position in the file: the status of radials that now begin or end a sweep, and do not say so."""
    marks = {}
    for n, radial in enumerate(radials):
        before = radials[n - 1] if n else None
        after = radials[n + 1] if n + 1 < len(radials) else None
        begins = before is None or before.elevation_number != radial.elevation_number
        # the last sweep of a file that is cut off stays open: it is no whole one
        ends = after is not None and (after.elevation_number != radial.elevation_number or after.status in _FIRST)
        if begins and radial.status not in _FIRST:
            marks[radial.status_at] = 0
        elif ends and radial.status not in _LAST:
            marks[radial.status_at] = 2
    return marks


def _write_marks(path: Path, kept: list[tuple[int, int]], marks: dict[int, int]) -> None:
    with path.open("r+b") as file:
        written = 0
        for start, end in kept:
            for at, status in marks.items():
                if start <= at < end:
                    file.seek(written + at - start)
                    file.write(bytes([status]))
            written += end - start

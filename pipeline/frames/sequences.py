"""The input of a forecast: J frames that end at its reference time, read from what the archive holds."""

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import times
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, NotForecast
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.correlation import FROZEN, correlation
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.gaps import fill_gaps
from pipeline.frames.grayscale import ADVECTED, ECHO, NO_COVERAGE, NO_ECHO, Frame, Pixels, pixel_of_rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputSequence:
    """What a forecast is made from.

    Attributes:
        reference_time: valid time of the newest frame.
        pixels: (J, channels, rows, columns) uint8, oldest first.
        state: (J, rows, columns) uint8; a missing frame is no coverage throughout.
        input_times: of the measured frames.
        filled_times: of the frames filled by advection.
        missing_times: of the frames that stay missing; a network then cannot run.
        checksums: SHA-256 of each measured frame.
        correlation: un-centred, oldest against newest frame; None if the oldest is missing.
        source: grid, drizzle floor and averaging interval of the frames.
        damaged_times: of the frames whose object cannot be decoded; they count as missing.
        radars: that the newest frame was made from, if it was made from volumes and the catalog still knows.
        radars_carried_on: that had no volume for the newest frame, so that the one before was moved on.
        offsets_s: per measured frame, how far what it shows was measured from its instant, seconds.
    """

    reference_time: datetime
    pixels: Pixels
    state: Pixels
    input_times: tuple[datetime, ...]
    filled_times: tuple[datetime, ...]
    missing_times: tuple[datetime, ...]
    checksums: tuple[str, ...]
    correlation: float | None
    source: FrameSource
    damaged_times: tuple[datetime, ...] = ()
    radars: tuple[str, ...] = ()
    radars_carried_on: tuple[str, ...] = ()
    offsets_s: tuple[float, ...] = ()

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Cells with a value, measured or advected, (J, rows, columns)."""
        return np.isin(self.state, (ECHO, NO_ECHO, ADVECTED))

    @property
    def rain(self) -> Pixels:
        """The first channel, (J, rows, columns)."""
        return self.pixels[:, 0]

    @property
    def is_dry(self) -> bool:
        """No echo in any frame."""
        return not self.pixels.any()

    @property
    def is_frozen(self) -> bool:
        """The oldest and newest frame are the same rain: the feed has stopped moving."""
        return self.correlation is not None and self.correlation >= FROZEN

    def digest(self, domain: Domain) -> str:
        """SHA-256 over the frames and every setting that changes the forecast."""
        content: dict[str, Any] = {
            "frames": dict(zip(map(times.iso, self.input_times), self.checksums, strict=True)),
            "filled": [times.iso(t) for t in self.filled_times],
            "missing": [times.iso(t) for t in self.missing_times],
            "source": self.source.to_json(),
            "domain": domain.model_dump(
                mode="json",
                include={"cadence_minutes", "input_frames", "product", "zr", "scale", "max_gap"},
            ),
            "leads": domain.lead_frames,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_sequence(archive: Archive, domain: Domain, reference_time: datetime) -> InputSequence:
    """Read and complete the input of ``reference_time``. Nothing after it is ever read.

    Raises:
        NotForecast: the frame of the reference time itself is missing.
    """
    step = domain.cadence
    damaged: list[datetime] = []
    instants = [reference_time - (domain.input_frames - 1 - n) * step for n in range(domain.input_frames)]
    found: dict[datetime, Frame | None] = {time: _read(archive, time, damaged) for time in instants}
    newest, source = found[reference_time], archive.source()
    if newest is None or source is None:
        raise NotForecast(f"no frame at the reference time {times.iso(reference_time)}")
    floor = source.drizzle_floor_mm_h
    measured = [t for t in instants if found[t] is not None]
    complete = fill_gaps(found, domain.max_gap, pixel_of_rate(floor, domain.zr, domain.scale))
    nothing = Frame(np.zeros_like(newest.pixels), np.full_like(newest.state, NO_COVERAGE))
    frames = [complete[t] or nothing for t in instants]
    first = complete[instants[0]]
    return InputSequence(
        reference_time=reference_time,
        pixels=np.stack([f.pixels for f in frames]),
        state=np.stack([f.state for f in frames]),
        input_times=tuple(measured),
        filled_times=tuple(t for t in instants if found[t] is None and complete[t] is not None),
        missing_times=tuple(t for t in instants if complete[t] is None),
        checksums=tuple(checksum(frame) for frame in found.values() if frame is not None),
        correlation=None if first is None else correlation(first.rain, newest.rain),
        source=source,
        damaged_times=tuple(damaged),
    )


def _read(archive: Archive, time: datetime, damaged: list[datetime]) -> Frame | None:
    """A frame that cannot be decoded is missing, and said to be."""
    try:
        return archive.read(time)
    except DamagedFrame as err:
        log.warning("%s", err)
        damaged.append(time)
        return None

"""UTC times: aware datetimes everywhere, converted here. Nothing below the edge reads the clock."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# outside of these there is no radar; dates at the ends of the calendar overflow when a lead time is added
YEARS = range(1900, 2200)


@dataclass(frozen=True)
class Clock:
    """The wall clock as the edge read it, and how it goes on; the same in every process of this machine.

    Attributes:
        start: what the clock showed (or, in a replay, was said to show) when the work began.
    """

    start: datetime
    begun: float = field(default_factory=time.monotonic)

    def now(self) -> datetime:
        """The start plus the time that has passed since."""
        return self.start + timedelta(seconds=time.monotonic() - self.begun)


@dataclass(frozen=True)
class SystemClock(Clock):
    """The wall clock itself, for a process that runs for days: it follows when the machine's clock is set right."""

    def now(self) -> datetime:
        """What the machine's clock shows."""
        return datetime.now(UTC)


def parse_time(text: str) -> datetime:
    """Read ISO 8601; a time without an offset is UTC.

    Raises:
        ValueError: not a time; the message says what was expected.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as err:
        raise ValueError(f"{text!r} is not an ISO 8601 time such as 2020-10-31T04:00Z") from err
    if found.year not in YEARS:
        raise ValueError(f"{text!r} is not in the years {YEARS.start} to {YEARS.stop - 1}")
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def iso(time: datetime) -> str:
    """As in 2020-10-31T04:00:00Z."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compact(time: datetime) -> str:
    """As in 20201031T040000Z, for file names."""
    return time.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def to_datetime64(time: datetime) -> np.datetime64:
    """Naive UTC datetime64[ns] for xarray."""
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "ns")


def seconds(time: datetime) -> int:
    """Whole seconds since 1970."""
    return round((time - EPOCH).total_seconds())


def nearest_slot(time: datetime, cadence: timedelta) -> datetime:
    """The instant of the fixed axis (whole cadences since 1970) closest to ``time``; a tie takes the earlier."""
    before = EPOCH + (time - EPOCH) // cadence * cadence
    after = before + cadence
    return before if time - before <= after - time else after


def is_slot(time: datetime, cadence: timedelta) -> bool:
    """Whether ``time`` lies on the fixed axis."""
    return (time - EPOCH) % cadence == timedelta(0)


def first_slot(time: datetime, cadence: timedelta) -> datetime:
    """The first instant of the axis at or after ``time``."""
    return EPOCH - ((EPOCH - time) // cadence) * cadence


def slots(start: datetime, end: datetime, cadence: timedelta) -> Iterator[datetime]:
    """Every instant of the axis in [start, end], both ends included."""
    time = first_slot(start, cadence)
    while time <= end:
        yield time
        time += cadence


def day_of(time: datetime) -> datetime:
    """Midnight UTC at or before ``time``."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

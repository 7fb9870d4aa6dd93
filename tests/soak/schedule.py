"""What goes wrong with the machine and the software in a soak, and when, drawn from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

CLOCK_OFF_S = 90.0
# in the text of an error that is raised in place of a method
MARK = "raised by the soak"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often a day, and for how many minutes at least and at most."""

    a_day: float
    minutes: tuple[float, float]


KINDS = {
    "failing disk": Kind(36, (1, 8)),
    "few descriptors": Kind(16, (1, 6)),
    "raising method": Kind(12, (3, 12)),
    "clock ahead": Kind(4, (4, 12)),
    "clock behind": Kind(4, (4, 12)),
}
# of the calls that fail, and of those of methods that raise, lowest and highest
CALL_SHARES, METHOD_SHARES = (0.002, 0.2), (0.1, 0.6)
MOST_DESCRIPTORS = 6
# a day: frames of the archive in which a byte is turned over, and live processes that are stopped beyond their lease
FLIPS, TAKEOVERS = 4, 8


@dataclass(frozen=True)
class Order:
    """What the live process is to do, and under which faults.

    Attributes:
        now: what its clock shows.
        failing: share of the system calls that fail.
        descriptors: that it may have besides those it has; None is no limit.
        raising: share of the calls of forecasting methods, and of the choice between them, that raise.
    """

    now: datetime
    failing: float = 0.0
    descriptors: int | None = None
    raising: float = 0.0


@dataclass(frozen=True)
class _Burst:
    kind: str
    start: datetime
    end: datetime
    share: float


class Schedule:
    """The faults of the periods in which the live process is at work.

    Args:
        periods: that it is at work in; a burst lies in one of them, and ends ten minutes before it.
        cadence: of the instants that are forecast.
    """

    def __init__(self, periods: Sequence[tuple[datetime, datetime]], cadence: timedelta, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._periods = periods
        self.bursts: list[_Burst] = []
        for name, kind in KINDS.items():
            for start in self._times(kind.a_day):
                length = timedelta(minutes=float(self._random.uniform(*kind.minutes)))
                share = float(self._random.uniform(0, 1))
                self.bursts.append(_Burst(name, start, start + length, share))
        self.flips = self._times(FLIPS)
        # when a cycle is likely to be at work: the composite of an instant comes 75 s after it
        delay = timedelta(seconds=90)
        self.takeovers = sorted({_next(time, cadence) + delay for time in self._times(TAKEOVERS)})

    def order(self, now: datetime) -> Order:
        """What holds at a time."""
        standing = {burst.kind: burst.share for burst in self.bursts if burst.start <= now < burst.end}
        seconds = CLOCK_OFF_S * (("clock ahead" in standing) - ("clock behind" in standing))
        few = "few descriptors" in standing
        return Order(
            now + timedelta(seconds=seconds),
            _between(CALL_SHARES, standing.get("failing disk")),
            int(self._random.integers(MOST_DESCRIPTORS)) if few else None,
            _between(METHOD_SHARES, standing.get("raising method")),
        )

    def counts(self) -> dict[str, int]:
        """Bursts by kind."""
        return {name: sum(burst.kind == name for burst in self.bursts) for name in KINDS}

    def _times(self, a_day: float) -> list[datetime]:
        """Random times of the periods, one at least."""
        lengths = [end - start - timedelta(minutes=10) for start, end in self._periods]
        total = sum(lengths, timedelta(0))
        times = []
        for share in sorted(self._random.uniform(0, 1, max(1, round(a_day * (total / timedelta(days=1)))))):
            rest = float(share) * total
            for (start, _), length in zip(self._periods, lengths, strict=True):
                if rest <= length:
                    times.append(start + rest)
                    break
                rest -= length
        return times


def _next(time: datetime, cadence: timedelta) -> datetime:
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + cadence * (1 + (time - midnight) // cadence)


def _between(limits: tuple[float, float], share: float | None) -> float:
    """On a scale of logarithms; 0 for None."""
    low, high = limits
    return 0.0 if share is None else low * (high / low) ** share

"""Feeds at simulated time: files that arrive when a script says so, and the live process under that clock."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from pipeline import times
from pipeline.live import Live
from pipeline.sources.synthetic import SyntheticRain, write_composite


class SimulatedClock(times.Clock):
    """Shows what it is set to."""

    def __init__(self, start: datetime) -> None:
        super().__init__(start)
        self.set(start)

    def set(self, time: datetime) -> None:
        object.__setattr__(self, "time", time)

    def now(self) -> datetime:
        return self.time


class Script:
    """What happens to a feed, and when."""

    def __init__(self) -> None:
        self._coming: list[tuple[datetime, int, Callable[[datetime], None]]] = []

    def at(self, time: datetime, action: Callable[[datetime], None]) -> None:
        self._coming.append((time, len(self._coming), action))

    def happen(self, now: datetime) -> None:
        self._coming.sort(key=lambda event: event[:2])
        while self._coming and self._coming[0][0] <= now:
            time, _, action = self._coming.pop(0)
            action(time)


def arrive(path: Path, content: bytes) -> Callable[[datetime], None]:
    """A file arrives whole, as one that is moved into the folder."""

    def action(time: datetime) -> None:
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(content)
        os.utime(temporary, (time.timestamp(), time.timestamp()))
        temporary.rename(path)

    return action


def composite(rain: SyntheticRain, time: datetime, folder: Path) -> bytes:
    """Bytes of a composite of the synthetic rain."""
    path = folder / "composite.h5"
    write_composite(path, rain.rain_rate(time), rain.grid, time)
    return path.read_bytes()


def live_until(
    live: Live, clock: SimulatedClock, script: Script, until: datetime, every: timedelta = timedelta(seconds=30)
) -> None:
    """Let time pass in steps, and the live process do all that is due at each."""
    while clock.now() <= until:
        script.happen(clock.now())
        while live.step() == 0:
            pass
        clock.set(clock.now() + every)

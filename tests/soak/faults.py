"""What goes wrong with a feed in a day, drawn from a seed: the same seed gives the same day."""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from pipeline import times
from pipeline.domain import Domain
from pipeline.settings import Settings
from pipeline.sources.synthetic import SyntheticRain
from pipeline.sources.synthetic_radars import RadarNetwork
from tests.simulation import Script, arrive, composite

SHARES = {"late": 0.08, "very late": 0.02, "duplicate": 0.03, "other bytes": 0.02, "lost": 0.03, "half first": 0.03,
          "truncated": 0.02}  # fmt: skip


def received(domain: Domain, start: datetime, end: datetime, made: Path) -> list[tuple[str, datetime, bytes]]:
    """Every file of a synthetic feed: name, when it comes if nothing goes wrong, content."""
    files = []
    if domain.source.kind == "synthetic_radars":
        network = RadarNetwork(domain.source, domain)
        for ref in network.list(start, end):
            path = made / ref.key
            network.write(path, ref.radar, ref.nominal_time)
            files.append((ref.key, ref.arrived_at + timedelta(seconds=20), path.read_bytes()))
    else:
        rain = SyntheticRain(domain.source, domain)
        for time in times.slots(start, end, domain.cadence):
            files.append((f"{times.compact(time)}.h5", time + timedelta(seconds=75), composite(rain, time, made)))
    return files


def script_of_faults(
    script: Script, folder: Path, files: list[tuple[str, datetime, bytes]], seed: int, faults: bool = True
) -> Counter[str]:
    """Write the arrivals of ``files`` into ``folder`` into the script. Returns how many went wrong, by kind."""
    rng = np.random.default_rng(seed)
    names, shares = list(SHARES), list(SHARES.values())
    happened: Counter[str] = Counter()
    for name, time, content in files:
        fault = str(rng.choice([*names, "none"], p=[*shares, 1 - sum(shares)])) if faults else "none"
        delay = float(rng.exponential(240))
        happened[fault] += 1
        path, half = folder / name, content[: len(content) // 2]
        if fault == "lost":
            continue
        late = {"late": timedelta(seconds=min(delay, 1200)), "very late": timedelta(seconds=3000 + delay)}
        time += late.get(fault, timedelta(0))
        if fault == "half first":
            script.at(time, arrive(path, half))
            time += timedelta(seconds=60 + delay)
        script.at(time, arrive(path, half if fault == "truncated" else content))
        if fault == "duplicate":
            script.at(time + timedelta(seconds=delay), arrive(path, content))
        if fault == "other bytes":  # the same key again, now damaged
            script.at(time + timedelta(seconds=delay), arrive(path, content[:-200]))
    return happened


class Flips:
    """Damage to the archive: a byte of the newest frame is another."""

    def __init__(self, settings: Settings) -> None:
        self._folders = [settings.root / "archive" / name for name in sorted(settings.domains)]
        self.count = 0

    def flip(self, time: datetime) -> None:
        """Of each domain in turn."""
        folder = self._folders[self.count % len(self._folders)]
        frames = list(folder.glob("**/frames/c/*/0/0/0"))
        if not frames:
            return
        newest = max(frames, key=lambda path: (path.parents[5], int(path.parents[2].name)))
        content = newest.read_bytes()
        middle = len(content) // 2
        temporary = newest.with_name("flipped")
        temporary.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        temporary.replace(newest)
        self.count += 1

"""Static maps of ground clutter: where a radar sees echo although it does not rain.

A map counts echo by elevation, azimuth and range over the dry volumes of a period; where it is frequent, quality
control removes it, in rain too, and the next beam is taken.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreUnavailable, machine_fault
from pipeline.radar.volume import Floats, Sweep, Volume

# cells of the map: elevations that are the same, degrees, and metres of range as far as ground echo is common
SAME_ELEVATION, AZIMUTHS, RANGE_STEP_M, REACH_M = 0.1, 360, 1000.0, 150e3
# weaker echo is not worth removing
CLUTTER_DBZ = 5.0
# a volume with echo over more of its gates beyond this distance is of rain
DRY_BEYOND_M, DRY_SHARE, LOW_SWEEPS = 60e3, 0.02, 0.3
FEWEST_VOLUMES = 5
FORMAT_VERSION = 1


@dataclass
class ClutterMap:
    """Counts of one radar.

    Attributes:
        volumes: dry ones counted.
        echo, seen: by elevation in degrees: (azimuths, ranges) volumes with echo, and volumes that measured there.
    """

    volumes: int = 0
    echo: dict[float, NDArray[np.int32]] = field(default_factory=dict)
    seen: dict[float, NDArray[np.int32]] = field(default_factory=dict)

    def add(self, volume: Volume) -> bool:
        """Count a volume before quality control; False if it rains, or nothing tells."""
        if volume.is_silent or not _is_dry(volume):
            return False
        self.volumes += 1
        for sweep in volume.sweeps:
            elevation = _nearest(self.echo, sweep.elevation)
            if elevation is None:
                elevation = round(sweep.elevation, 2)
                for counts in (self.echo, self.seen):
                    counts[elevation] = np.zeros((AZIMUTHS, int(REACH_M / RANGE_STEP_M)), np.int32)
            where, inside = _cells(sweep)
            for counts, gates in ((self.echo, sweep.dbz > CLUTTER_DBZ), (self.seen, ~np.isnan(sweep.dbz))):
                # once a volume, however many of its gates lie in a cell
                hit = np.zeros(counts[elevation].size, bool)
                hit[where[gates & inside]] = True
                counts[elevation] += hit.reshape(counts[elevation].shape)
        return True

    def share(self, frequency: float) -> float:
        """Share of the measured cells where echo is at least so frequent."""
        often = sum(int((self.echo[e] >= frequency * np.maximum(self.seen[e], 1)).sum()) for e in self.echo)
        return often / max(1, sum(int((seen > 0).sum()) for seen in self.seen.values()))

    def frequency(self, sweep: Sweep) -> Floats | None:
        """Share of dry volumes with echo at each gate, (rays, gates); None if the map does not know the elevation."""
        elevation = _nearest(self.echo, sweep.elevation)
        if elevation is None or self.volumes < FEWEST_VOLUMES:
            return None
        share = self.echo[elevation] / np.maximum(self.seen[elevation], FEWEST_VOLUMES)
        where, inside = _cells(sweep)
        return np.where(inside, share.ravel()[where], 0.0).astype(np.float32)


def write_map(path: Path, counted: ClutterMap) -> None:
    """Write the counts as plain arrays."""
    arrays = {f"{kind}_{e:g}": a for kind, c in (("echo", counted.echo), ("seen", counted.seen)) for e, a in c.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, format_version=FORMAT_VERSION, volumes=counted.volumes, **arrays)  # type: ignore[arg-type]


def read_map(folder: Path, radar: str) -> ClutterMap | None:
    """The map of a radar in ``folder``; None if there is none.

    Raises:
        StoreUnavailable: the file is damaged, or of a newer version.
    """
    path = map_path(folder, radar)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def map_path(folder: Path, radar: str) -> Path:
    """File of a radar's map."""
    return folder / f"{radar or 'radar'}.npz"


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int) -> ClutterMap:
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["format_version"]) != FORMAT_VERSION:
                raise ValueError(f"format {file['format_version']}, this version reads {FORMAT_VERSION}")
            found = ClutterMap(int(file["volumes"]))
            for name in file.files:
                kind, _, elevation = name.partition("_")
                if kind in ("echo", "seen"):
                    getattr(found, kind)[float(elevation)] = file[name]
            return found
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
        if isinstance(err, FileNotFoundError):
            raise
        if fault := machine_fault(err):  # the map may be sound: it is not to be removed
            raise StoreUnavailable(f"the clutter map {path} cannot be read now: {fault}") from err
        raise StoreUnavailable(f"the clutter map {path} cannot be read: {err}; remove it or make it again") from err


def _cells(sweep: Sweep) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of the map's cell for every gate, and whether the map reaches so far."""
    ranges = (sweep.range_m + sweep.gate_m * np.arange(sweep.dbz.shape[1])) / RANGE_STEP_M
    steps = int(REACH_M / RANGE_STEP_M)
    column = np.clip(ranges.astype(np.int64), 0, steps - 1)
    row = np.floor(sweep.azimuth % 360 * (AZIMUTHS / 360)).astype(np.int64) % AZIMUTHS
    inside = np.broadcast_to((ranges >= 0) & (ranges < steps), sweep.dbz.shape)
    return row[:, None] * steps + column[None], inside


def _nearest(counts: dict[float, NDArray[np.int32]], elevation: float) -> float | None:
    near = [known for known in counts if abs(known - elevation) <= SAME_ELEVATION]
    return min(near, key=lambda known: abs(known - elevation)) if near else None


def _is_dry(volume: Volume) -> bool:
    lowest = min(sweep.elevation for sweep in volume.sweeps) + LOW_SWEEPS  # higher ones look over shallow rain
    low = [sweep for sweep in volume.sweeps if sweep.elevation <= lowest]
    far = [s.dbz[:, s.range_m + s.gate_m * np.arange(s.dbz.shape[1]) > DRY_BEYOND_M] for s in low]
    measured = sum(int((~np.isnan(dbz)).sum()) for dbz in far)
    return measured > 0 and sum(int((dbz > CLUTTER_DBZ).sum()) for dbz in far) <= DRY_SHARE * measured

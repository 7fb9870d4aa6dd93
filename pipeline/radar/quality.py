"""Removal of what is not rain from a sweep. A removed gate is not measured: gridding takes the next valid beam.

Blocked sectors that the settings name, and frequent echo of a clutter map, if there is one; co-polar correlation or
the variation from pulse to pulse where the radar gives it, the texture and shape test of Gabella and Notarpietro (2002)
near the ground where it gives neither, and single gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.domain import Quality
from pipeline.radar.clutter import ClutterMap
from pipeline.radar.gridding import EFFECTIVE_EARTH_M
from pipeline.radar.volume import NO_ECHO_DBZ, Floats, Sweep, Volume
from pipeline.source_settings import BlockedSector

Mask = NDArray[np.bool_]

# hail lowers the correlation of strong echo, by so much at most
STRONG_ECHO_DBZ, HAIL_ALLOWANCE = 35.0, 0.15
# correlation tells nothing where the echo is less than this above the noise
ABOVE_NOISE_DB = 10.0
# below this height above the antenna, echoes of the ground are to be expected
CLUTTER_HEIGHT_M = 1500.0


def clean(
    volume: Volume, quality: Quality, blocked: Sequence[BlockedSector] = (), clutter: ClutterMap | None = None
) -> tuple[Volume, dict[str, float]]:
    """Apply the steps that ``quality`` switches on.

    Args:
        blocked: sectors of this radar.
        clutter: its map, if one was made.

    Returns:
        The cleaned volume, and per step the share of all echo gates that it removed.
    """
    removed: dict[str, float] = {}
    echoes = max(1, sum(int((s.dbz > NO_ECHO_DBZ).sum()) for s in volume.sweeps))
    sweeps = []
    steps: dict[str, Callable[[Sweep, Quality], Mask | None]] = {
        "clutter map": partial(frequent_echo, clutter=clutter),
        **_STEPS,
    }
    for sweep in (without_blocked(sweep, blocked) for sweep in volume.sweeps):
        for name, step in steps.items():
            bad = step(sweep, quality)
            if bad is None or not bad.any():
                continue
            removed[name] = removed.get(name, 0.0) + float(bad.sum()) / echoes
            dbz = np.where(bad, np.float32(np.nan), sweep.dbz)
            sweep = replace(sweep, dbz=dbz, removed=bad if sweep.removed is None else sweep.removed | bad)
        sweeps.append(sweep)
    return replace(volume, sweeps=tuple(sweeps)), removed


def without_blocked(sweep: Sweep, blocked: Sequence[BlockedSector]) -> Sweep:
    """Gates behind an obstacle are not measured: too little comes back from there, or nothing."""
    hidden = np.zeros(sweep.dbz.shape, bool)
    ranges = sweep.range_m + sweep.gate_m * np.arange(sweep.dbz.shape[1])
    for sector in blocked:
        if sweep.elevation < sector.below_elevation:
            first, last = sector.azimuths
            width = (last - first) % 360 or 360.0
            rays = (sweep.azimuth - first) % 360 <= width
            hidden |= rays[:, None] & (ranges >= 1e3 * sector.beyond_km)[None]
    return replace(sweep, dbz=np.where(hidden, np.float32(np.nan), sweep.dbz)) if hidden.any() else sweep


def frequent_echo(sweep: Sweep, quality: Quality, clutter: ClutterMap | None) -> Mask | None:
    """Echo where dry volumes had it too, at least as often as ``quality.clutter_frequency``."""
    frequency = clutter.frequency(sweep) if clutter is not None and quality.clutter_frequency else None
    if frequency is None:
        return None
    return np.asarray((sweep.dbz > NO_ECHO_DBZ) & (frequency >= quality.clutter_frequency))


def too_strong(sweep: Sweep, quality: Quality) -> Mask | None:
    """Echo above ``quality.max_dbz``, which no rain and no hail gives."""
    return np.asarray(sweep.dbz > quality.max_dbz) if quality.max_dbz else None


def low_correlation(sweep: Sweep, quality: Quality) -> Mask | None:
    """Echo that is not rain by its co-polar correlation (ground, insects, chaff).

    Unknown correlation is kept, and echo near the noise, whose correlation is low in rain too.
    """
    if not quality.min_rhohv or sweep.rhohv is None:
        return None
    clear = (sweep.dbz > _faintest(sweep) + ABOVE_NOISE_DB) & (sweep.dbz > NO_ECHO_DBZ)
    limit = np.where(sweep.dbz < STRONG_ECHO_DBZ, quality.min_rhohv, quality.min_rhohv - HAIL_ALLOWANCE)
    return np.asarray(clear & (sweep.rhohv < limit))


def still_echo(sweep: Sweep, quality: Quality) -> Mask | None:
    """Echo that hardly changes from pulse to pulse: ground, also amid rain and at heights where mountains stand."""
    if not quality.min_fluctuation_db or sweep.fluctuation is None:
        return None
    return np.asarray((sweep.dbz > NO_ECHO_DBZ) & (sweep.fluctuation < quality.min_fluctuation_db))


def ground_echo(sweep: Sweep, quality: Quality) -> Mask | None:
    """Gabella and Notarpietro: echo that stands out from its neighbours, or whose area has too long an edge.

    Only for sweeps without a moment that tells it better, and only where the beam is low.
    """
    if not quality.ground_echo or sweep.rhohv is not None or sweep.fluctuation is not None:
        return None
    gates = _gates_below(sweep, CLUTTER_HEIGHT_M)
    if gates < 10:
        return None
    # a margin, so that the test does not see an edge where it only stops
    dbz = np.where(np.isnan(sweep.dbz), NO_ECHO_DBZ, sweep.dbz)[:, : gates + 10]
    bad = np.zeros(sweep.dbz.shape, bool)
    bad[:, :gates] = gabella(dbz)[:, :gates]
    return bad


def specks(sweep: Sweep, quality: Quality) -> Mask | None:
    """Connected echo of fewer gates than ``quality.min_echo_gates``."""
    if quality.min_echo_gates <= 1:
        return None
    echo = sweep.dbz > NO_ECHO_DBZ
    labels = _labels_around(echo)
    small = np.bincount(labels.ravel()) < quality.min_echo_gates
    small[0] = False
    return np.asarray(small[labels])


def gabella(
    dbz: Floats, window: int = 5, difference: float = 6.0, neighbours: int = 6, ratio: float = 1.3, rain: float = 0.0
) -> Mask:
    """Clutter by texture and shape, on (rays, gates) without NaN; rays are periodic.

    Args:
        window: side of the neighbourhood.
        difference: a neighbour is alike if it is at most this much weaker, dB.
        neighbours: fewer alike ones are clutter.
        ratio: areas whose number of gates over that of edge gates is smaller are clutter.
        rain: only echo above this counts, dBZ.
    """
    half = window // 2
    padded = np.pad(dbz, ((half, half), (0, 0)), mode="wrap")
    padded = np.pad(padded, ((0, 0), (half, half)), mode="constant", constant_values=NO_ECHO_DBZ)
    alike = np.zeros(dbz.shape, np.int16)
    for row in range(window):
        for column in range(window):
            if (row, column) != (half, half):
                other = padded[row : row + dbz.shape[0], column : column + dbz.shape[1]]
                alike += (dbz - other < difference) & (other > NO_ECHO_DBZ)
    echo = dbz > rain
    labels = _labels_around(echo)
    edge = echo & ~ndimage.binary_erosion(np.pad(echo, ((1, 1), (0, 0)), mode="wrap"))[1:-1]
    area = np.bincount(labels.ravel())
    edges = np.bincount(labels.ravel(), weights=edge.ravel())
    thin = area / np.maximum(edges, 1) < ratio
    thin[0] = False
    return np.asarray(echo & ((alike < neighbours) | thin[labels]))


def _faintest(sweep: Sweep) -> Floats:
    """The smallest echo that the radar can see at each gate, dBZ, from what it did see: it grows with distance."""
    echo = sweep.dbz > NO_ECHO_DBZ
    spread = 20 * np.log10(sweep.range_m + sweep.gate_m * np.arange(sweep.dbz.shape[1]) + 1.0)
    if not echo.any():
        return np.full(sweep.dbz.shape[1], NO_ECHO_DBZ, np.float32)
    level = np.percentile((sweep.dbz - spread)[echo], 1)
    return np.asarray(level + spread, np.float32)


def _labels_around(echo: Mask) -> NDArray[np.int32]:
    """Connected areas, joined over north."""
    labels, count = ndimage.label(echo, structure=np.ones((3, 3)))
    joined = np.arange(count + 1)
    for shift in (-1, 0, 1):
        last, first = labels[-1], np.roll(labels[0], shift)
        for a, b in set(zip(last[(last > 0) & (first > 0)], first[(last > 0) & (first > 0)], strict=True)):
            joined[joined == joined[b]] = joined[a]
    return np.asarray(joined[labels], np.int32)


def _gates_below(sweep: Sweep, height_m: float) -> int:
    """Number of gates whose beam is lower than ``height_m`` above the antenna."""
    ranges = sweep.range_m + sweep.gate_m * np.arange(sweep.dbz.shape[1])
    height = ranges * np.sin(np.deg2rad(sweep.elevation)) + ranges**2 / (2 * EFFECTIVE_EARTH_M)
    return int((height < height_m).sum())


_STEPS = {
    "too strong": too_strong,
    "low correlation": low_correlation,
    "still echo": still_echo,
    "ground echo": ground_echo,
    "specks": specks,
}

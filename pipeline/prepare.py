"""One volume: decoded, cleaned and gridded; or the reason why it gives nothing."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline import times
from pipeline.domain import Domain, ProjectedGrid
from pipeline.errors import BadInput, StoreUnavailable, WorkerLost, machine_fault
from pipeline.grids import Grid, centred_grid
from pipeline.ingest import FUTURE_TOLERANCE
from pipeline.radar.clutter import read_map
from pipeline.radar.decode import without_silent_sweeps
from pipeline.radar.gridding import GriddedVolume, Level, grid_volume, level_of
from pipeline.radar.quality import clean
from pipeline.source_settings import PolarSource
from pipeline.sources import open_polar_source
from pipeline.sources.contract import VolumeRef

log = logging.getLogger(__name__)

# a volume whose sweeps are this far from its name has a wrong clock, or a wrong name
CLOCK_TOLERANCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Prepared:
    """A volume after decoding, cleaning and gridding; or why there is nothing.

    Attributes:
        field: None if the volume gives nothing; ``reason`` then says why.
        removed: share of the echo that quality control took out.
        measured_until: mean time of the rays of the last sweep, seconds since 1970; 0 if nothing could be read.
        state: framed, partial or quarantined; or one of ``catalog.RETRIED``.
    """

    ref: VolumeRef
    state: str
    reason: str = ""
    field: GriddedVolume | None = None
    removed: float = 0.0
    measured_until: float = 0.0


def prepare_all(domain: Domain, refs: Sequence[VolumeRef], now: datetime, maps: Path) -> Iterator[Prepared]:
    """In order; in processes where the source says so, since neither HDF5 nor decoding gains from threads.

    What was at work when a process died is tried once more, each alone; what then kills its process again is refused.

    Raises:
        WorkerLost: processes die before they have anything to do.
    """
    source = domain.source
    assert isinstance(source, PolarSource)
    if source.processes == 1:
        for ref in refs:
            yield prepare(domain, ref, now, maps)
        return
    waiting = deque(refs)
    while waiting:
        suspects: deque[VolumeRef] = deque()
        yield from _until_one_dies(domain, waiting, now, maps, source.processes, suspects)
        while suspects:
            died: deque[VolumeRef] = deque()
            yield from _until_one_dies(domain, suspects, now, maps, 1, died)
            for ref in died:
                killed = "killed the process, alone too: a fault of a library, or no memory"
                yield Prepared(ref, "quarantined", f"{ref.key}: decoding its {ref.size} bytes {killed}")


def _until_one_dies(
    domain: Domain, waiting: deque[VolumeRef], now: datetime, maps: Path, processes: int, suspects: deque[VolumeRef]
) -> Iterator[Prepared]:
    """Prepare what waits, in order. When a process dies, what was at work goes to ``suspects``; the rest waits on."""
    # no more ahead than keeps the processes busy: a finished volume takes tens of megabytes
    at_once = 2 * processes + 1 if processes > 1 else 1
    coming: deque[tuple[VolumeRef, Future[Prepared]]] = deque()
    with ProcessPoolExecutor(min(processes, len(waiting)), get_context("spawn")) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool as err:
            raise WorkerLost(f"processes that should decode volumes of {domain.name} die as they start") from err
        try:
            while waiting or coming:
                while waiting and len(coming) < at_once:
                    coming.append((waiting[0], pool.submit(prepare, domain, waiting[0], now, maps)))
                    waiting.popleft()
                one = coming[0][1].result()
                coming.popleft()
                yield one
        except BrokenProcessPool:
            suspects.extend(ref for ref, _ in coming)
            log.warning("a process that decodes volumes of %s was killed", domain.name)
        finally:
            for _, future in coming:
                future.cancel()


def prepare(domain: Domain, ref: VolumeRef, now: datetime, maps: Path) -> Prepared:
    """Decode, clean and grid one volume; whatever is wrong with it becomes a state with a reason.

    Args:
        maps: folder of the clutter maps of the domain's radars.
    """
    source = domain.source
    assert isinstance(source, PolarSource)
    try:
        if ref.nominal_time > now + FUTURE_TOLERANCE:
            dated = f"dated {times.iso(ref.nominal_time)}, which is after now ({times.iso(now)})"
            return Prepared(ref, "future", f"{ref.key}: {dated}")
        with TemporaryDirectory(prefix="volume-") as folder:
            volume = open_polar_source(domain).read(ref, Path(folder))
        if volume.is_silent:
            raise BadInput(f"{ref.key}: no gate of {len(volume.sweeps)} sweeps was measured; silent, which is not dry")
        until = max(sweep.time for sweep in volume.sweeps).timestamp()
        volume = without_silent_sweeps(volume)
        volume, removed = clean(volume, domain.quality, source.blocked.get(ref.radar, ()), read_map(maps, ref.radar))
        grid = domain_grid(domain)
        gridded = grid_volume(volume, grid, domain_levels(domain), source.max_range_km * 1e3)
        if gridded is None:
            raise BadInput(f"{ref.key}: the radar at {volume.site} does not reach the grid of {domain.name}")
        if abs(gridded.time - ref.nominal_time) > CLOCK_TOLERANCE or gridded.time > now + FUTURE_TOLERANCE:
            reason = f"{ref.key}: the name says {times.iso(ref.nominal_time)}, the rays {times.iso(gridded.time)}"
            if abs(gridded.time - ref.nominal_time) <= CLOCK_TOLERANCE:
                return Prepared(ref, "future", f"{reason}, which is after now ({times.iso(now)})")
            raise BadInput(reason)
        if np.isnan(gridded.dbz).all():
            raise BadInput(f"{ref.key}: nothing was measured on the grid of {domain.name}, which is not dry")
    except BadInput as err:
        return Prepared(ref, "quarantined", str(err))
    except OSError as err:
        return Prepared(ref, "unreadable", f"{ref.key}: cannot be read: {err.strerror or err}")
    except MemoryError:
        # perhaps others took it; this volume is tried again, and the rest goes on
        return Prepared(ref, "unreadable", f"{ref.key}: not enough memory to decode its {ref.size} bytes")
    except StoreUnavailable:
        raise
    except Exception as err:
        if fault := machine_fault(err):
            return Prepared(ref, "unreadable", f"{ref.key}: cannot be read: {fault}")
        # a decoder met content that it has no words for; the traceback is for us, the file for the quarantine
        log.exception("decoding %s failed", ref.key)
        return Prepared(ref, "quarantined", f"{ref.key}: cannot be decoded: {type(err).__name__}: {err}")
    defects = "; ".join((*((ref.lacks,) if ref.lacks else ()), *gridded.defects))
    return Prepared(ref, "partial" if defects else "framed", defects, gridded, sum(removed.values()), until)


def domain_grid(domain: Domain) -> Grid:
    """The grid of a domain that has one of its own."""
    assert isinstance(domain.grid, ProjectedGrid)
    return centred_grid(domain.grid.crs, domain.grid.shape, domain.grid.spacing_m, domain.grid.centre)


def domain_levels(domain: Domain) -> tuple[Level, ...]:
    """What the channels of the domain's frames show."""
    return tuple(level_of(product) for product in domain.products)

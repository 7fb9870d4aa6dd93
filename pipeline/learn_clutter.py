"""Clutter maps from the dry volumes of a period, one for each radar of a domain."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.domain import Domain
from pipeline.errors import BadInput, NowcastError, StoreUnavailable, machine_fault
from pipeline.radar.clutter import FEWEST_VOLUMES, ClutterMap, map_path, write_map
from pipeline.source_settings import PolarSource
from pipeline.sources import open_polar_source
from pipeline.storage import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What was found of one radar.

    Attributes:
        volumes, dry: read, and counted for the map.
        clutter: share of the map's cells where echo is as frequent as ``quality.clutter_frequency``.
        path: the map below the root; empty if there were too few dry volumes for one.
    """

    radar: str
    volumes: int
    dry: int
    clutter: float
    path: str


def learn_clutter(
    domain: Domain,
    store: Store,
    start: datetime,
    end: datetime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Learned]:
    """Count where each radar sees echo in dry volumes; a map that exists is replaced.

    Raises:
        NowcastError: the domain's source has no volumes.
    """
    if not isinstance(domain.source, PolarSource):
        raise NowcastError(f"{domain.name} has composites; clutter maps are made from polar volumes")
    source = open_polar_source(domain)
    refs = source.list(start, end)
    maps: dict[str, ClutterMap] = {}
    read: dict[str, int] = {}
    for n, ref in enumerate(refs):
        counted = maps.setdefault(ref.radar, ClutterMap())
        try:
            with TemporaryDirectory(prefix="volume-") as scratch:
                counted.add(source.read(ref, Path(scratch)))
            read[ref.radar] = read.get(ref.radar, 0) + 1
        except (BadInput, OSError) as err:
            if fault := machine_fault(err):  # a map of the few volumes that could be read must not replace a good one
                raise StoreUnavailable(f"{ref.key} cannot be read: {fault}") from err
            log.warning("left out: %s", err)
        progress(n + 1, len(refs))
    learned = []
    for radar, counted in sorted(maps.items()):
        path = ""
        if counted.volumes >= FEWEST_VOLUMES:
            target = map_path(store.clutter(domain.name), radar)
            with store.publish(target) as temporary:
                write_map(temporary, counted)
            path = store.relative(target)
        share = counted.share(domain.quality.clutter_frequency)
        learned.append(Learned(radar, read.get(radar, 0), counted.volumes, share, path))
    return learned

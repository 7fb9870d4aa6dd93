"""Where volumes and composites come from: one source per module, one line here."""

from collections.abc import Callable
from typing import Any

from pipeline.domain import Domain
from pipeline.sources.contract import PolarFeed, RainField, Source, VolumeRef
from pipeline.sources.gridded import GriddedFiles
from pipeline.sources.synthetic import SyntheticRain
from pipeline.sources.synthetic_radars import RadarNetwork
from pipeline.sources.volumes import VolumeFiles

__all__ = ["PolarFeed", "RainField", "Source", "VolumeRef", "open_polar_source", "open_source"]

SOURCES: dict[str, Callable[[Any, Domain], Source]] = {
    "gridded": lambda config, domain: GriddedFiles(config),
    "synthetic": lambda config, domain: SyntheticRain(config, domain),
}


POLAR_SOURCES: dict[str, Callable[[Any, Domain], PolarFeed]] = {
    "volumes": lambda config, domain: VolumeFiles(config),
    "synthetic_radars": lambda config, domain: RadarNetwork(config, domain),
}


def open_source(domain: Domain) -> Source:
    """The source of a domain, by the ``kind`` of its settings."""
    return SOURCES[domain.source.kind](domain.source, domain)


def open_polar_source(domain: Domain) -> PolarFeed:
    """The source of polar volumes of a domain, by the ``kind`` of its settings."""
    return POLAR_SOURCES[domain.source.kind](domain.source, domain)

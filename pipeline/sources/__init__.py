"""Where volumes and composites come from: one source per module, one line here."""

from collections.abc import Callable
from typing import Any

from pipeline.settings import Domain
from pipeline.sources.contract import RainField, Source, VolumeRef
from pipeline.sources.gridded import GriddedFolder
from pipeline.sources.synthetic import SyntheticRain

__all__ = ["RainField", "Source", "VolumeRef", "open_source"]

SOURCES: dict[str, Callable[[Any, Domain], Source]] = {
    "gridded": lambda config, domain: GriddedFolder(config),
    "synthetic": lambda config, domain: SyntheticRain(config, domain),
}


def open_source(domain: Domain) -> Source:
    """The source of a domain, by the ``kind`` of its settings."""
    return SOURCES[domain.source.kind](domain.source, domain)

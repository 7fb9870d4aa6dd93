"""The domain of ``nowcast demo``: two radars see three hours of a synthetic rain event over the Low Countries."""

from datetime import UTC, datetime
from pathlib import Path

from pipeline.domain import Domain, ProjectedGrid
from pipeline.settings import Settings
from pipeline.source_settings import RadarSite, SyntheticRadarsSource

DOMAIN = "demo"
# seed 21 is not one that the shipped model was trained on
PERIOD = (datetime(2024, 6, 1, 2, 0, tzinfo=UTC), datetime(2024, 6, 1, 3, 30, tzinfo=UTC))
_CRS = "+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs"


def settings(root: Path) -> Settings:
    """Settings with the one domain ``demo`` and everything below ``root``."""
    root = root.resolve()
    domain = Domain(
        name=DOMAIN,
        cadence_minutes=10,
        grid=ProjectedGrid(crs=_CRS, shape=(160, 160), spacing_m=2000.0, centre=(5.0, 51.0)),
        source=SyntheticRadarsSource(
            kind="synthetic_radars",
            seed=21,
            radars={
                "east": RadarSite(longitude=5.9, latitude=50.9, altitude_m=120.0),
                "west": RadarSite(longitude=4.2, latitude=51.1, altitude_m=50.0),
            },
        ),
    )
    return Settings(root=root, catalog=f"sqlite:///{root / 'catalog.sqlite'}", domains={DOMAIN: domain})

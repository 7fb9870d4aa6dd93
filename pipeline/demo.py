"""The domain of ``nowcast demo``: three hours of one synthetic rain event over the Low Countries."""

from datetime import UTC, datetime
from pathlib import Path

from pipeline.settings import Domain, ProjectedGrid, Settings, SyntheticSource

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
        source=SyntheticSource(kind="synthetic", seed=21, event_hours=6, max_speed_m_s=18.0),
    )
    return Settings(root=root, catalog=f"sqlite:///{root / 'catalog.sqlite'}", domains={DOMAIN: domain})

"""The two feeds of a soak: composites, and the volumes of two radars."""

from datetime import datetime
from pathlib import Path

from pipeline.domain import Domain
from pipeline.settings import Settings
from tests.soak.faults import received

GRID = {"crs": "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs", "shape": (64, 64), "spacing_m": 2000.0,
        "centre": (5.0, 51.0)}  # fmt: skip
RADARS = {"east": {"longitude": 5.4, "latitude": 50.9, "altitude_m": 120.0},
          "west": {"longitude": 4.6, "latitude": 51.1, "altitude_m": 50.0}}  # fmt: skip
PATTERN = r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5"
GENERATORS = {
    "composites": {"kind": "synthetic", "seed": 21, "event_hours": 6},
    "radars": {"kind": "synthetic_radars", "seed": 22, "event_hours": 6, "radars": RADARS},
}


def domains(folder: Path) -> dict[str, Domain]:
    """The two domains, reading from folders below ``folder``."""
    common = {"cadence_minutes": 6, "lead_frames": 10, "lateness": {"deadline_s": 240, "grace_s": 1500}}
    sources = {
        "composites": {"kind": "gridded", "reader": "odim_comp", "uri": str(folder / "composites")},
        "radars": {
            "kind": "volumes",
            "pattern": PATTERN,
            "time_format": "%Y%m%dT%H%M%SZ",
            "uri": str(folder / "radars"),
        },
    }
    grids = {"composites": {"native": True}, "radars": GRID}
    return {
        name: Domain.model_validate({**common, "name": name, "grid": grids[name], "source": source})
        for name, source in sources.items()
    }


def settings_of(folder: Path, root: str) -> Settings:
    """Settings of a root below ``folder``."""
    path = folder / root
    return Settings(root=path, catalog=f"sqlite:///{path / 'catalog.sqlite'}", domains=domains(folder / f"feed-{root}"))


def generate(folder: Path, periods: list[tuple[datetime, datetime]]) -> dict[str, list[tuple[str, datetime, bytes]]]:
    """What both feeds would bring in some periods if nothing went wrong."""
    made = folder / "made"
    made.mkdir()
    found = {}
    for name, source in GENERATORS.items():
        domain = Domain.model_validate({"cadence_minutes": 6, "name": name, "grid": GRID, "source": source})
        found[name] = [file for start, end in periods for file in received(domain, start, end, made)]
    return found

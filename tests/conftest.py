"""What the tests share: the sample data, a small synthetic domain, a root of its own for each test."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.settings import SAMPLE_DATA_DEFAULT, Settings
from pipeline.storage import Store
from tests.postgres_server import postgres_server, postgres_url  # noqa: F401
from tests.s3_server import CREDENTIALS, FaultyProxy, running_server

PROJECT = Path(__file__).parents[1]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith("NOWCAST_") and name != "NOWCAST_SAMPLE_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real radar data."""
    folder = Path(os.environ.get("NOWCAST_SAMPLE_DATA", PROJECT / SAMPLE_DATA_DEFAULT)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set NOWCAST_SAMPLE_DATA to the folder of real radar files")
    return folder


def synthetic_domain(name: str = "small", **changes) -> Domain:
    """64 x 64 cells of 2 km, every 10 minutes, forecasts to 40 minutes."""
    values = {
        "name": name,
        "cadence_minutes": 10,
        "lead_frames": 4,
        "grid": {
            "crs": "+proj=laea +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m +type=crs",
            "shape": (64, 64),
            "spacing_m": 2000.0,
            "centre": (5.0, 51.0),
        },
        "source": {"kind": "synthetic", "seed": 21, "event_hours": 6},
    }
    return Domain.model_validate({**values, **changes})


def brisbane_domain(folder: Path, **changes) -> Domain:
    """Brisbane from ``folder``, at 4 km so that a test stays short."""
    values = {
        "name": "brisbane",
        "cadence_minutes": 10,
        "lead_frames": 4,
        "grid": {"native": True, "coarsen": 8},
        "source": {"kind": "gridded", "reader": "bom_rainfields", "uri": str(folder)},
    }
    return Domain.model_validate({**values, **changes})


def settings_for(root: Path, *domains: Domain) -> Settings:
    return Settings(
        root=root, catalog=f"sqlite:///{root / 'catalog.sqlite'}", domains={domain.name: domain for domain in domains}
    )


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root) -> Store:
    return Store(root)


@pytest.fixture
def catalog(store):
    catalog = Catalog(f"sqlite:///{store.root / 'catalog.sqlite'}")
    yield catalog
    catalog.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either_url(request, root) -> str:
    """Address of an empty catalog, of both kinds in turn."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{root / 'catalog.sqlite'}"


@pytest.fixture(scope="session")
def s3_server():
    """Endpoint of an S3 server that takes any credentials."""
    with running_server() as endpoint:
        yield endpoint


@pytest.fixture
def credentials(monkeypatch):
    """Those that the S3 server of the tests takes, and no others of this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def new_bucket(s3_server, credentials):
    """Makes an empty bucket of the S3 server; ``Bucket`` of it."""
    from pipeline.objects import Bucket
    from pipeline.s3_client import client
    from pipeline.source_settings import S3Access

    access = S3Access(endpoint_url=s3_server, timeout_s=5, retries=1)

    def make() -> Bucket:
        name = f"test-{uuid.uuid4().hex}"
        client(access).create_bucket(Bucket=name)
        return Bucket(access, name)

    return make


@pytest.fixture
def proxy(s3_server, monkeypatch):
    """A proxy in front of the S3 server that makes faults; what is tried again is so without a pause."""
    monkeypatch.setattr("pipeline.objects.LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    proxy = FaultyProxy(s3_server)
    yield proxy
    proxy.close()

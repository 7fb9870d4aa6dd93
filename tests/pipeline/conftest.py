"""A small domain with an untrained network, and settings for it."""

import pytest

from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.cycles import write_model


@pytest.fixture
def domain(tmp_path):
    return synthetic_domain(model=write_model(tmp_path / "tiny"))


@pytest.fixture
def settings(root, domain):
    return settings_for(root, domain)

"""A backfill on Dask workers: the same products as without, although one is killed (about a minute)."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations
from pipeline.catalog import Catalog
from pipeline.errors import SettingsError
from tests.conftest import settings_for, synthetic_domain

START = datetime(2024, 6, 1, 2, tzinfo=UTC)
END = START + timedelta(minutes=230)


def digests(settings) -> dict[int, str]:
    catalog = Catalog(settings.catalog)
    rows = catalog.read(sa.select(tables.cycles).where(tables.cycles.c.state == "published"))
    catalog.close()
    return {row["reference_time"]: row["content_digest"] for row in rows}


def test_dask_makes_the_same_products_although_workers_are_killed(tmp_path):
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    settings = [settings_for(tmp_path / name, synthetic_domain(model="optical_flow")) for name in ("alone", "cluster")]
    started = time.monotonic()
    operations.backfill(settings[0], "small", START, END, datetime.now(UTC))
    alone = time.monotonic() - started
    killed = []

    def kill_one(stage: str, done: int, total: int) -> None:
        if stage == "nowcast" and done >= 4 and not killed:
            import distributed

            # the workers of the cluster that this process has started
            [cluster] = list(distributed.LocalCluster._instances)
            [first, *_] = cluster.workers.values()
            os.kill(first.pid, signal.SIGKILL)
            killed.append(first.pid)

    started = time.monotonic()
    report = operations.backfill(
        settings[1], "small", START, END, datetime.now(UTC), workers=2, progress=kill_one, dask="local"
    )
    print(f"\nalone {alone:.1f} s, two Dask workers of which one was killed {time.monotonic() - started:.1f} s")
    assert killed and report.problems == []
    first, second = map(digests, settings)
    assert len(first) == 24 and second == first


def test_a_cluster_that_is_not_fit_is_refused(tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    settings = settings_for(tmp_path, synthetic_domain(model="optical_flow"))
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None,
                                       protocol="tcp://")  # fmt: skip
    with cluster, pytest.raises(SettingsError, match="2 threads, expected 1"):
        operations.backfill(settings, "small", START, START, datetime.now(UTC), dask=cluster.scheduler_address)

"""Cycles of a small synthetic domain, for the tests of forecasts and of their publication."""

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from models import checkpoint, zoo
from pipeline import catalog as tables
from pipeline import nowcast, operations, times
from pipeline.catalog import Catalog
from pipeline.frames.archive import Archive
from pipeline.issue import Wanted
from pipeline.issue import issue as issue_cycles
from pipeline.storage import Store
from tests.conftest import NOW

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


def write_model(folder, network="convlstm", config=None, **changes):
    """An untrained but valid network: its skill is of no interest here."""
    import torch

    torch.manual_seed(1)
    config = {"widths": [6], "patch": 2} if config is None else config
    card = checkpoint.Card("tiny", network, config, -10.0, 60.0, [10], [1000.0, 3000.0], "surface_rain")
    network = zoo.build(network, config)
    checkpoint.save(folder, network, dataclasses.replace(card, **changes))
    return str(folder)


def backfill(settings, start=T0, end=T0, workers=1):
    return operations.backfill(settings, "small", start, end, NOW, workers)


def digests(settings) -> dict[int, tuple[str, str]]:
    rows = Catalog(settings.catalog).read(sa.select(tables.cycles).where(tables.cycles.c.state == "published"))
    return {row["reference_time"]: (row["content_digest"], row["baselines_digest"]) for row in rows}


def files_below(root) -> set[str]:
    skip = {"tmp", "journal"}
    return {
        str(p.relative_to(root))
        for p in root.rglob("*")
        if p.is_file() and p.relative_to(root).parts[0] not in skip and not p.name.startswith("catalog.sqlite")
    }


def remove_frames(settings, *instants):
    domain = settings.domain("small")
    archive = Archive(Store(settings.root), domain)
    for instant in instants:
        day, slot = archive._slot(instant)
        shutil.rmtree(archive._path(day) / "frames" / "c" / str(slot))


def issue(settings, *reference_times, kind="hindcast"):
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    wanted = [Wanted(domain, time) for time in reference_times]
    outcomes = issue_cycles(
        store, catalog, nowcast.Loader(store, settings, catalog).methods, wanted, kind, times.Clock(NOW)
    )
    return sorted(outcomes, key=lambda outcome: outcome.reference_time)

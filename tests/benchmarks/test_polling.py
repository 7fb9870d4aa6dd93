"""What a poll costs that finds nothing new, and one that finds one volume, beside 10,000 that are known.

python -m pytest tests/benchmarks/test_polling.py -s
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.ingest import ingest, known_volumes, volume_row
from pipeline.ingest_volumes import slot_of
from pipeline.prepare import Prepared
from pipeline.sources import open_polar_source
from tests.conftest import NOW, synthetic_domain
from tests.pipeline.test_ingest_volumes import GRID

RADARS, INSTANTS = 40, 250
CADENCE = timedelta(minutes=10)
END = datetime(2024, 6, 2, tzinfo=UTC)
FIRST = END - (INSTANTS - 1) * CADENCE
NAMES = [f"r{radar:03d}_{times.compact(FIRST + n * CADENCE)}.h5" for n in range(INSTANTS) for radar in range(RADARS)]


def domain_of(uri: str, **more):
    source = {"kind": "volumes", "uri": uri, "pattern": r"(?P<radar>\w+)_(?P<time>\d{8}T\d{6}Z)\.h5"}
    return synthetic_domain("net", grid=GRID, source={**source, "time_format": "%Y%m%dT%H%M%SZ", **more})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"x")
    return folder


def seconds(work):
    """CPU seconds of this process, which do not depend on who else is at work; and the result."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def remember(catalog, store, domain, refs):
    """Catalog rows as if all had been taken in."""
    volumes = [
        volume_row(domain, ref, NOW) | {"slot": times.seconds(slot_of(ref.nominal_time, domain.cadence))}
        for ref in refs
    ]
    inputs: dict[int, list] = {}
    for ref, row in zip(refs, volumes, strict=True):
        one = {"radar": ref.radar, "key": ref.key, "etag": ref.etag, "offset_s": 0.0, "aligned": "taken as it is"}
        inputs.setdefault(row["slot"], []).append(one | {"removed": 0.0, "carried": False})
    frames = [
        {
            "domain": domain.name, "valid_time": slot, "sha256": "", "source_key": "", "arrived_at": 0.0,
            "offset_s": 0.0, "coverage": 1.0, "echo": 0.0, "removed": 0.0, "inputs": json.dumps(own), "framed_at": 0.0,
        }
        for slot, own in inputs.items()
    ]  # fmt: skip
    with catalog.write() as connection:
        catalog.upsert(connection, tables.volumes, volumes)
        catalog.upsert(connection, tables.frames, frames)


@pytest.mark.parametrize("window", [3, INSTANTS], ids=["live window", "all of it"])
def test_a_folder(folder, store, catalog, window):
    domain = domain_of(str(folder))
    took, refs = seconds(lambda: open_polar_source(domain).list(FIRST, END))
    assert len(refs) == len(NAMES)
    remember(catalog, store, domain, refs)
    start = END - (window - 1) * CADENCE
    again, _ = seconds(lambda: open_polar_source(domain).list(start, END))
    known, rows = seconds(lambda: known_volumes(catalog, domain, start, END, NOW))
    poll, result = seconds(lambda: ingest(domain, store, catalog, start, END, NOW))
    assert (result.framed, result.quarantined) == (0, []) and result.unchanged >= window * RADARS
    (folder / f"r000_{times.compact(END + timedelta(minutes=1))}.h5").write_bytes(b"bad")
    bad, result = seconds(lambda: ingest(domain, store, catalog, start, END, NOW))
    assert len(result.quarantined) == 1
    print(
        f"\n  folder of {len(NAMES)} files, window of {window} instants: first listing {took:.2f} s, then {again:.2f},"
        f"\n    {len(rows)} known volumes {known:.3f} s, poll without news {poll:.2f} s, with a bad volume {bad:.2f} s"
    )


def test_bookkeeping_of_many_new_volumes(folder, store, catalog, monkeypatch):
    """Nothing is decoded and no frame made, so that what is measured is what goes with each volume."""
    domain = domain_of(str(folder))

    def prepared(domain, ref, now, maps):
        return Prepared(ref, "framed", "", SimpleNamespace(time=ref.nominal_time))

    monkeypatch.setattr("pipeline.prepare.prepare", prepared)
    monkeypatch.setattr("pipeline.ingest_volumes.frame_instant", lambda work, slot: None)
    for instants in (INSTANTS // 4, INSTANTS):
        with catalog.write() as connection:
            connection.execute(sa.delete(tables.volumes))
        end, done = FIRST + (instants - 1) * CADENCE, []
        took, _ = seconds(
            lambda end=end, done=done: ingest(domain, store, catalog, FIRST, end, NOW, lambda n, total: done.append(n))
        )
        print(f"\n  {len(done)} new volumes: {1e3 * took / len(done):.2f} ms each")


def test_a_bucket(new_bucket, proxy):
    whole, by_day = new_bucket(), new_bucket()
    body = b"x"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: whole.put(body, name), NAMES))
        list(
            pool.map(lambda name: by_day.put(body, f"{name[5:9]}/{name[9:11]}/{name[11:13]}/{name[:4]}/{name}"), NAMES)
        )
    start = END - 2 * CADENCE
    for bucket, layout in ((whole, ""), (by_day, "%Y/%m/%d/{radar}/")):
        s3 = bucket.access.model_copy(update={"endpoint_url": proxy.endpoint, "timeout_s": 30.0}).model_dump()
        radars = [f"r{n:03d}" for n in range(RADARS)] if layout else []
        domain = domain_of(f"s3://{bucket.bucket}", s3=s3, layout=layout, radars=radars)
        for name, first in (("live window", start), ("all of it", FIRST)):
            proxy.seen.clear()
            started = time.perf_counter()
            refs = open_polar_source(domain).list(first, END)
            waited = time.perf_counter() - started
            print(
                f"\n  bucket, layout {layout or 'none'!r}, {name}: {len(refs)} volumes, {len(proxy.seen)} requests, "
                f"{waited:.2f} s (server, proxy and client on one machine)"
            )

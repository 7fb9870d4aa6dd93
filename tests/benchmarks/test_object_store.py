"""What a store in a bucket costs: a cycle's publication, and its input frames, against a folder.

python -m pytest tests/benchmarks/test_object_store.py -s

The server is moto, on this machine: what is measured is our part and the protocol, not a network.
"""

import statistics
import time
from datetime import timedelta

import pytest

from pipeline import nowcast, operations, publish, times
from pipeline.frames.archive import Archive
from pipeline.frames.sequences import read_sequence
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import T0

ROUNDS = 9


@pytest.mark.parametrize("cells", [64, 512])
def test_publication(new_bucket, tmp_path, cells):
    grid = {**synthetic_domain().grid.model_dump(), "shape": (cells, cells)}
    domain = synthetic_domain(model="last_frame", grid=grid, lead_frames=12, points={"here": (5.0, 51.0)})
    folder, bucket = settings_for(tmp_path / "folder", domain), new_bucket()
    machine = settings_for(tmp_path / "machine", domain).model_copy(
        update={"store": f"s3://{bucket.bucket}", "s3": bucket.access}
    )
    told = {"read 5 frames": {}, "publish": {}}
    for name, settings in (("folder", folder), ("bucket", machine)):
        operations.ingest(settings, "small", T0 - timedelta(hours=1), T0, NOW)
        store, catalog = operations.open_root(settings)
        methods = nowcast.Loader(store, settings, catalog).methods(domain, 2000.0)
        publication = publish.Publication("hindcast", 1, times.Clock(NOW), "benchmark", {})
        with catalog.lease("benchmark") as lease:
            for _ in range(ROUNDS):
                started = time.perf_counter()
                sequence = read_sequence(Archive(store, domain), domain, T0)
                told["read 5 frames"].setdefault(name, []).append(time.perf_counter() - started)
                made = nowcast.forecast((domain, sequence), methods)
                started = time.perf_counter()
                publish.publish(domain, store, catalog, lease, sequence, made, publication)
                told["publish"].setdefault(name, []).append(time.perf_counter() - started)
        catalog.close()
    print(f"\n  {cells} x {cells} cells, 12 lead times, medians of {ROUNDS}")
    for what, taken in told.items():
        medians = {name: statistics.median(values) for name, values in taken.items()}
        print(
            f"  {what:14} folder {medians['folder']:.3f} s, bucket {medians['bucket']:.3f} s: "
            f"{medians['bucket'] / medians['folder']:.2f} times"
        )

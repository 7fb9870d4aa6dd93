"""Cycles: what they are made from, the fallback chain, publication, and what they never do."""

import dataclasses
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from models import checkpoint, zoo
from pipeline import catalog as tables
from pipeline import nowcast, operations, product, publish, times
from pipeline.catalog import Catalog, Lease
from pipeline.errors import LeaseLost, NotForecast
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import ADVECTED, NO_COVERAGE
from pipeline.packing import read_digest, read_packed
from pipeline.rebuild import rebuild
from pipeline.storage import Store
from tests.conftest import NOW, PROJECT, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


def write_model(folder, **changes):
    """An untrained but valid network: its skill is of no interest here."""
    import torch

    torch.manual_seed(1)
    network = zoo.build("convlstm", {"widths": [6], "patch": 2})
    card = checkpoint.Card(
        "tiny", "convlstm", {"widths": [6], "patch": 2}, -10.0, 60.0, [10], [1000.0, 3000.0], "surface_rain"
    )
    checkpoint.save(folder, network, dataclasses.replace(card, **changes))
    return str(folder)


@pytest.fixture
def domain(tmp_path):
    return synthetic_domain(model=write_model(tmp_path / "tiny"))


@pytest.fixture
def settings(root, domain):
    return settings_for(root, domain)


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
    load = lambda spacing: nowcast.load_methods(domain, store, 1, spacing)  # noqa: E731
    return nowcast.issue(domain, store, catalog, load, list(reference_times), kind, times.Clock(NOW))


def test_again_there_is_no_work_and_no_digest_changes(settings):
    first = backfill(settings, T0, T0 + 2 * STEP)
    assert first.cycles == {"published": 3} and first.methods == {"tiny": 3}
    before, files = digests(settings), files_below(settings.root)
    stamps = {f: (settings.root / f).stat().st_mtime_ns for f in files}
    again = backfill(settings, T0, T0 + 2 * STEP)
    assert again.cycles == {"unchanged": 3}
    assert (again.ingest.framed, again.verify.scored) == (0, 0)
    assert digests(settings) == before
    assert {f: (settings.root / f).stat().st_mtime_ns for f in files_below(settings.root)} == stamps


def test_two_workers_and_another_root_make_the_same_bytes(settings, tmp_path):
    backfill(settings, T0, T0 + 7 * STEP)
    other = settings_for(tmp_path / "other", settings.domain("small"))
    backfill(other, T0, T0 + 7 * STEP, workers=2)
    assert digests(other) == digests(settings)
    assert files_below(other.root) == files_below(settings.root)
    a, b = (next((s.root / "verification").rglob("*.nc")) for s in (settings, other))
    assert read_digest(a) == read_digest(b)


def _backfill_forever(settings) -> None:
    operations.backfill(settings, "small", T0, T0 + 7 * STEP, NOW)


@pytest.mark.parametrize("seconds", [2.5, 3.5, 5.0])
def test_a_run_killed_at_any_moment_and_run_again_leaves_the_same(settings, tmp_path, seconds):
    whole = settings_for(tmp_path / "whole", settings.domain("small"))
    backfill(whole, T0, T0 + 7 * STEP)
    worker = multiprocessing.get_context("spawn").Process(target=_backfill_forever, args=(settings,))
    worker.start()
    time.sleep(seconds)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    backfill(settings, T0, T0 + 7 * STEP)
    assert digests(settings) == digests(whole)
    assert files_below(settings.root) == files_below(whole.root)
    assert list((settings.root / "tmp").iterdir()) == []


def processes_of(session: int) -> list[int]:
    """Processes that a command and its children run in."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_backfill_stops_with_its_workers(settings, tmp_path, ending):
    grid = "{ crs = '+proj=laea +lat_0=51 +lon_0=5 +units=m', shape = [192, 192], spacing_m = 2000, centre = [5, 51] }"
    (tmp_path / "nowcast.toml").write_text(
        f"root = '{settings.root}'\n[domains.small]\ncadence_minutes = 10\ngrid = {grid}\n"
        "source = { kind = 'synthetic', seed = 21 }\n"
    )
    line = "backfill small --from 2024-06-01T02:00Z --to 2024-06-01T22:00Z --workers 2 --set prefect_api_url=http://x:9"
    command = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *line.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((settings.root / "products").rglob("*.nc")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ending == signal.SIGINT:  # Ctrl-C reaches every process
        os.killpg(command.pid, signal.SIGINT)
        said = command.communicate(timeout=120)[1]
        assert command.returncode == 130 and "the same command goes on" in said
    else:
        command.kill()
        command.wait()
    made = len(list((settings.root / "products").rglob("*_r1.nc")))
    deadline = time.monotonic() + 30
    while processes_of(command.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(command.pid) == []
    assert 0 < made < 60  # of 121
    assert len(list((settings.root / "products").rglob("*_r1.nc"))) <= made + 8


def test_nothing_looks_into_the_future(settings, tmp_path):
    backfill(settings, T0, T0)
    other = settings_for(tmp_path / "other", settings.domain("small"))
    operations.ingest(other, "small", T0 - 4 * STEP, T0, NOW)  # nothing after T0 exists here
    (made,) = issue(other, T0)
    assert made.content_digest == digests(settings)[times.seconds(T0)][0]


def test_a_product_whose_row_was_lost_is_adopted_and_not_made_again(settings):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    stamp = path.stat().st_mtime_ns
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.delete(tables.cycles))
    assert backfill(settings).cycles == {"published": 1}
    assert digests(settings) == before and path.stat().st_mtime_ns == stamp


def test_latest_is_written_by_the_run_that_finds_it_missing(settings):
    operations.run(settings, "small", T0, T0)
    latest = settings.root / "products/small/latest.json"
    for lost in ("latest", "row and latest"):
        latest.unlink()
        if lost != "latest":
            with Catalog(settings.catalog).write() as connection:
                connection.execute(sa.delete(tables.cycles))
        operations.run(settings, "small", T0, T0)
        assert latest.exists(), lost


def test_who_lost_the_lease_replaces_nothing(settings, monkeypatch):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    inode = path.stat().st_ino
    monkeypatch.setattr(publish, "recorded", lambda *_: None)  # as it looked before the other process published
    monkeypatch.setattr(publish, "adopt", lambda *_: None)

    def lost(self, connection):
        raise LeaseLost("taken over")

    monkeypatch.setattr("pipeline.catalog.Lease.check", lost)
    (outcome,) = issue(settings, T0)
    assert outcome.state == "held"
    assert digests(settings) == before and path.stat().st_ino == inode
    assert list((settings.root / "tmp").iterdir()) == []


def test_a_damaged_input_frame_counts_as_missing(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    for slot, expected in ((10, "tiny"), (12, None)):  # 01:40, then the reference time itself
        path = settings.root / f"archive/small/2024/06/01.zarr/frames/c/{slot}/0/0/0"
        path.write_bytes(b"no frame")
        (made,) = issue(settings, T0, kind=f"k{slot}")
        assert (made.method or None) == expected
        if expected:
            assert read_packed(settings.root / made.path).attrs["filled_times"] == "2024-06-01T01:40:00Z"


def test_a_flipped_byte_in_a_frame_is_noticed_and_its_source_read_again(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    whole = archive.read(T0 - STEP)
    folder = archive._path(datetime(2024, 6, 1, tzinfo=UTC)) / "frames/c/11"
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    (made,) = issue(settings, T0)
    data = read_packed(settings.root / made.path)
    assert data.attrs["filled_times"] == "2024-06-01T01:50:00Z" and "01:50" not in data.attrs["input_times"]
    again = operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    assert (again.ingest.framed, again.ingest.unchanged) == (1, 4)
    assert np.array_equal(Archive(Store(settings.root), settings.domain("small")).read(T0 - STEP).pixels, whole.pixels)
    assert len(list((settings.root / "quarantine/small").iterdir())) == 1


@pytest.mark.parametrize("lost", ["small_20240601T020000Z_r1.nc", "small_20240601T020000Z_r1.baselines.nc"])
def test_a_product_that_was_lost_is_made_again(settings, lost):
    first = backfill(settings)
    before = digests(settings)
    (settings.root / first.products[0]).with_name(lost).unlink()
    assert backfill(settings).cycles == {"published": 1}
    assert digests(settings) == before and (settings.root / first.products[0]).with_name(lost).is_file()


def test_the_time_of_issue_is_that_of_publication_and_comes_back_after_a_loss(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    store, catalog = operations.open_root(settings)
    clock = times.Clock(NOW - timedelta(seconds=30), time.monotonic() - 30)
    domain = settings.domain("small")
    nowcast.issue(domain, store, catalog, lambda s: nowcast.load_methods(domain, store, 1, s), [T0], "issued", clock)
    (row,) = catalog.read(sa.select(tables.cycles))
    issued = row["issue_time"] - NOW.timestamp()
    assert 0 <= issued < 25
    rebuild([domain], store, catalog)
    (row,) = catalog.read(sa.select(tables.cycles))
    assert row["issue_time"] - NOW.timestamp() == pytest.approx(issued, abs=1)


def test_a_domain_of_last_frame_has_no_fallback_to_report(root):
    settings = settings_for(root, synthetic_domain(model="last_frame"))
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    remove_frames(settings, T0 - STEP, T0 - 2 * STEP)
    (made,) = issue(settings, T0)
    assert (made.method, made.reason) == ("last_frame", "")


def test_a_late_feed_still_gives_the_newest_forecast_from_all_its_inputs(settings):
    report = operations.run(settings, "small", None, T0 + timedelta(minutes=7))
    assert report.methods == {"tiny": 1}


def test_a_damaged_product_without_a_row_is_made_again(settings):
    backfill(settings)
    before = digests(settings)
    path = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.nc"
    path.write_bytes(path.read_bytes()[:5000])
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.delete(tables.cycles))
    backfill(settings)
    assert digests(settings) == before and read_digest(path) == before[times.seconds(T0)][0]


def test_one_missing_frame_is_filled_and_said_so(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    remove_frames(settings, T0 - 2 * STEP)
    (made,) = issue(settings, T0)
    assert made.method == "tiny"
    attrs = read_packed(settings.root / made.path).attrs
    assert attrs["filled_times"] == "2024-06-01T01:40:00Z"
    assert "2024-06-01T01:40:00Z" not in attrs["input_times"]


def test_a_longer_gap_falls_back_to_optical_flow_and_then_to_the_last_frame(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + STEP, NOW)
    remove_frames(settings, T0 - 3 * STEP, T0 - 2 * STEP)
    (flow,) = issue(settings, T0)
    assert flow.method == "optical_flow" and "2024-06-01T01:30:00Z" in flow.reason
    remove_frames(settings, T0 - STEP, T0)
    (last,) = issue(settings, T0 + STEP)
    assert last.method == "last_frame" and "two newest frames" in last.reason
    baselines = product.read_baselines(Store(settings.root).baselines(settings.root / last.path))
    assert baselines["optical_flow"] is None and baselines["last_frame"] is not None


def test_no_frame_at_the_reference_time_is_a_recorded_skip_and_the_rest_goes_on(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + STEP, NOW)
    remove_frames(settings, T0)
    skipped, made = issue(settings, T0, T0 + STEP)
    assert (skipped.state, made.state) == ("skipped", "published")
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles).where(tables.cycles.c.state == "skipped"))
    assert "no frame at the reference time 2024-06-01T02:00:00Z" in row["reason"]
    issue(settings, T0)
    assert len(list(Store(settings.root).read_journal())) == 1  # said once, not at every run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dbz_max": 70.0}, "dBZ scale"),
        ({"cadences_minutes": [5, 6]}, "cadence"),
        ({"spacing_m": [500.0, 1000.0]}, "grid spacing"),
        ({"product": "cappi_2km"}, "product"),
    ],
)
def test_a_model_for_other_frames_is_refused_and_optical_flow_serves(root, tmp_path, change, said):
    settings = settings_for(root, synthetic_domain(model=write_model(tmp_path / "m", **change)))
    report = backfill(settings)
    assert report.methods == {"optical_flow": 1}
    assert said in report.notes[0]
    assert said in read_packed(root / report.products[0]).attrs["fallback_reason"]


@pytest.mark.parametrize("model", ["nonesuch", "/nowhere/at/all"])
def test_a_model_that_is_not_there_falls_back(root, model):
    report = backfill(settings_for(root, synthetic_domain(model=model)))
    assert report.methods == {"optical_flow": 1}
    assert "no model" in report.notes[0] or "not a readable model card" in report.notes[0]
    # forecasts went out, but not as configured: somebody must mend it
    (problem,) = report.problems
    assert problem.startswith("domains.small.model: ")


def test_a_product_of_another_model_stands_and_that_is_said(settings, root):
    backfill(settings)
    other = backfill(settings_for(root, synthetic_domain(model="last_frame")))
    assert other.cycles == {"unchanged": 1}
    assert other.notes == ["1 x stands as published by tiny, although the model is now last_frame"]


def test_a_model_that_fails_falls_back(settings, monkeypatch):
    from models.networks.encoder_forecaster import EncoderForecaster

    def fail(self, *arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(EncoderForecaster, "forward", fail)
    report = backfill(settings)
    assert report.methods == {"optical_flow": 1} and "can't allocate memory" in report.notes[0]


def test_dry_input_is_a_forecast_of_no_rain(settings):
    event = datetime(2024, 6, 1, 0, 0, tzinfo=UTC)  # an event begins dry
    domain = settings.domain("small")
    operations.ingest(settings, "small", event, event, NOW)
    archive = Archive(Store(settings.root), domain)
    frame = archive.read(event)
    assert not frame.pixels.any()
    for n in range(1, 5):
        archive.write(event + n * STEP, frame, archive.source())
    (made,) = issue(settings, event + 4 * STEP)
    data = read_packed(settings.root / made.path)
    assert (data["rainfall_rate"].values == 0).all() and data.attrs["dry_input"] == 1
    assert made.method == "tiny"


def test_a_frozen_feed_is_marked(settings, caplog):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 - 4 * STEP, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    frame = archive.read(T0 - 4 * STEP)
    for n in range(4):
        archive.write(T0 - n * STEP, frame, archive.source())
    with caplog.at_level("WARNING", logger="pipeline"):
        (made,) = issue(settings, T0)
    assert read_packed(settings.root / made.path).attrs["frozen_feed"] == 1
    assert any("frozen" in record.message for record in caplog.records)


def test_issued_and_hindcast_stand_beside_each_other(settings):
    now = T0 + timedelta(minutes=12)
    live = operations.run(settings, "small", None, now)
    assert live.products == ["products/small/issued/2024/06/01/small_20240601T021000Z_r1.nc"]
    old = operations.run(settings, "small", T0 + STEP, NOW)
    assert old.products == ["products/small/hindcast/2024/06/01/small_20240601T021000Z_r1.nc"]
    kinds = Catalog(settings.catalog).read(sa.select(tables.cycles.c.kind, tables.cycles.c.content_digest))
    assert {row["kind"] for row in kinds} == {"issued", "hindcast"}


def test_latest_follows_what_is_issued_and_never_moves_back(settings):
    import json

    latest = settings.root / "products/small/latest.json"
    operations.run(settings, "small", T0, NOW)
    assert not latest.exists()  # a hindcast is not news
    operations.run(settings, "small", T0 + STEP, T0 + STEP)
    operations.run(settings, "small", T0, T0 + STEP)
    assert json.loads(latest.read_text())["reference_time"] == "2024-06-01T02:10:00Z"


def test_reference_times_off_the_axis_or_in_the_future_are_refused(settings):
    with pytest.raises(NotForecast, match="10-minute axis"):
        operations.run(settings, "small", T0 + timedelta(minutes=3), NOW)
    with pytest.raises(NotForecast, match="after now"):
        operations.run(settings, "small", T0 + STEP, T0)


def test_another_process_at_work_is_left_alone(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    with Catalog(settings.catalog).lease("cycle/small/hindcast/2024-06-01T02:00:00Z"):
        (held,) = issue(settings, T0)
    assert held.state == "held"
    (made,) = issue(settings, T0)
    assert made.state == "published"


def test_two_backfills_at_once_share_the_work_and_both_are_done(settings, monkeypatch):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    monkeypatch.setattr("pipeline.cycles.HELD_PAUSE_S", 0.05)
    lease = Lease(Catalog(settings.catalog), "cycle/small/hindcast/2024-06-01T02:00:00Z")
    assert lease.acquire()
    threading.Timer(0.3, lease.release).start()
    report = backfill(settings)
    assert report.cycles == {"published": 1} and report.problems == []


def test_cells_without_coverage_stay_without_in_the_forecast(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    for n in range(5):
        frame = archive.read(T0 - n * STEP)
        frame.state[:, :20], frame.pixels[..., :20] = NO_COVERAGE, 0
        archive.write(T0 - n * STEP, frame, archive.source())
    (made,) = issue(settings, T0)
    pixels, state, _ = product.read_forecast(settings.root / made.path, settings.domain("small"))
    assert (state[:, :, :20] == NO_COVERAGE).all() and not (state[:, :, 20:] == NO_COVERAGE).any()
    assert not pixels[:, :, :20].any()
    data = read_packed(settings.root / made.path)
    assert (data["rainfall_rate"].values[:, :, :20] == -32768).all()


def test_inflow_of_optical_flow_is_flagged(root):
    report = backfill(settings_for(root, synthetic_domain(model="optical_flow")))
    _, state, _ = product.read_forecast(root / report.products[0], synthetic_domain())
    share = (state == ADVECTED).mean(axis=(1, 2))
    assert 0 < share[0] < share[-1] < 0.6


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    script = (
        "import sys\nfrom tests.pipeline.test_nowcast import issue, T0\n"
        "from tests.conftest import settings_for, synthetic_domain\nfrom pathlib import Path\n"
        "from pipeline.errors import StoreUnavailable\n"
        "settings = settings_for(Path(sys.argv[1]), synthetic_domain(model=sys.argv[2]))\n"
        "try:\n    issue(settings, T0)\nexcept StoreUnavailable as err:\n    print('said:', err)\n"
    )
    limit = 20_000  # bytes that one file may have: less than a product
    done = subprocess.run(
        [sys.executable, "-c", script, str(settings.root), settings.domain("small").model],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert "said: cannot write" in done.stdout or "said: the catalog" in done.stdout, done.stderr[-2000:]
    assert not list((settings.root / "products").rglob("*.nc")) and not list((settings.root / "tmp").iterdir())
    (made,) = issue(settings, T0)
    assert made.state == "published"


def test_the_inputs_digest_follows_frames_and_settings(settings, tmp_path):
    from pipeline.frames.sequences import read_sequence

    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    domain = settings.domain("small")
    archive = Archive(Store(settings.root), domain)
    before = read_sequence(archive, domain, T0)
    assert read_sequence(archive, domain, T0).digest(domain) == before.digest(domain)
    assert before.digest(domain.model_copy(update={"lead_frames": 5})) != before.digest(domain)
    frame = archive.read(T0 - STEP)
    frame.pixels[0, 0, 0] ^= 255
    archive.write(T0 - STEP, frame, archive.source())
    assert read_sequence(archive, domain, T0).digest(domain) != before.digest(domain)
    assert np.array_equal(before.pixels[-1], archive.read(T0).pixels)

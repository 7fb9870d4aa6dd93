"""Polar volumes become frames: one or several radars, late, moved, damaged or silent."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
import sqlalchemy as sa
from scipy.ndimage import shift

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import rate_table
from pipeline.holdings import holdings
from pipeline.ingest import ingest
from pipeline.ingest_volumes import slot_of
from pipeline.packing import read_packed
from pipeline.prepare import domain_grid
from pipeline.radar.gridding import grid_volume
from pipeline.radar.quality import clean
from pipeline.sources.synthetic_radars import RadarNetwork
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 3, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
GRID = {
    "crs": "+proj=lcc +lat_1=50 +lat_2=52 +lat_0=51 +lon_0=5 +ellps=WGS84 +units=m",
    "shape": (96, 96),
    "spacing_m": 2000.0,
    "centre": (5.0, 51.0),
}
RADARS = {
    "east": {"longitude": 5.9, "latitude": 50.9, "altitude_m": 120.0},
    "west": {"longitude": 4.2, "latitude": 51.1, "altitude_m": 50.0},
}
NETWORK = synthetic_domain("net", grid=GRID, source={"kind": "synthetic_radars", "seed": 21, "radars": RADARS})


def feed(folder, **changes) -> Domain:
    """A domain that reads volumes named RADAR_TIME.h5 from ``folder``."""
    folder.mkdir(exist_ok=True)
    source = {
        "kind": "volumes",
        "uri": str(folder),
        "pattern": r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5",
        "time_format": "%Y%m%dT%H%M%SZ",
    }
    return synthetic_domain("net", grid=GRID, source={**source, **changes})


def put(folder, *instants, radars=("east", "west")):
    network = RadarNetwork(NETWORK.source, NETWORK)
    for time in instants:
        for radar in radars:
            network.write(folder / f"{radar}_{times.compact(time)}.h5", radar, time)


def take_in(domain, store, catalog, start=T0 - STEP, end=T0 + STEP, now=NOW):
    return ingest(domain, store, catalog, start, end, now)


def end_before_the_frame(monkeypatch, domain, store, catalog):
    """An ingest that is interrupted when it has recorded the volumes."""

    def ended(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest_volumes.frame_instant", ended)
        with pytest.raises(KeyboardInterrupt):
            take_in(domain, store, catalog)


def frame_rows(catalog) -> dict[datetime, dict]:
    rows = catalog.read(sa.select(tables.frames).order_by(tables.frames.c.valid_time))
    return {tables.from_seconds(row["valid_time"]): row for row in rows}


def states(catalog) -> dict[str, str]:
    return {row["key"]: row["state"] for row in catalog.read(sa.select(tables.volumes))}


def test_two_radars_give_the_rain_back(store, catalog):
    """Synthetic truth at the frame's own time against the frame that its volumes made."""
    ingest(NETWORK, store, catalog, T0, T0, NOW)
    frame = Archive(store, NETWORK).read(T0)
    truth = RadarNetwork(NETWORK.source, NETWORK).rain.rain_rate(T0)
    seen = rate_table(NETWORK.zr, NETWORK.scale, 0.1)[frame.rain]
    both = frame.observed & (truth > 0.3) & (seen > 0.3)
    error = 16 * np.log10(seen[both] / truth[both])  # dB
    assert frame.observed.mean() > 0.99 and both.sum() > 500
    assert abs(np.mean(error)) < 1.0 and np.sqrt(np.mean(error**2)) < 3.0
    wet, forecast = truth[frame.observed] > 0.3, seen[frame.observed] > 0.3
    assert (wet & forecast).sum() / (wet | forecast).sum() > 0.85


def test_a_frame_is_moved_to_its_instant_and_says_so(store, catalog):
    ingest(NETWORK, store, catalog, T0 - STEP, T0, NOW)
    row = frame_rows(catalog)[T0]
    inputs = json.loads(row["inputs"])
    assert [i["radar"] for i in inputs] == ["east", "west"]
    assert all(0 < i["removed"] < 0.1 for i in inputs)  # the ground around the radars
    assert {i["aligned"] for i in inputs} == {"moved forward"} and 60 < inputs[1]["offset_s"] < 140
    # moving it brings it closer to the truth at the instant than leaving it
    truth = RadarNetwork(NETWORK.source, NETWORK).rain.rain_rate(T0) > 1
    moved = Archive(store, NETWORK).read(T0).rain > 118
    early = RadarNetwork(NETWORK.source, NETWORK).rain.rain_rate(T0 - timedelta(seconds=90)) > 1
    assert (moved ^ truth).sum() < (early ^ truth).sum() + 400


def test_ingest_again_does_nothing_and_a_late_volume_makes_its_frame_anew(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0 - STEP, T0, radars=("west",))
    first = take_in(domain, store, catalog)
    assert (first.framed, first.quarantined) == (2, [])
    assert frame_rows(catalog)[T0]["source_key"] == f"west_{times.compact(T0)}.h5"
    again = take_in(domain, store, catalog)
    assert (again.framed, again.unchanged) == (0, 2)
    before = frame_rows(catalog)[T0]
    put(tmp_path / "in", T0 - STEP, T0, radars=("east",))
    late = take_in(domain, store, catalog)
    assert (late.framed, late.unchanged) == (2, 2)
    row = frame_rows(catalog)[T0]
    assert row["coverage"] > before["coverage"] and len(json.loads(row["inputs"])) == 2


def test_a_product_says_which_radars_it_was_made_from(root):
    settings = settings_for(root, NETWORK.model_copy(update={"model": "optical_flow", "lead_frames": 2}))
    report = operations.backfill(settings, "net", T0, T0, NOW)
    attrs = read_packed(root / report.products[0]).attrs
    assert attrs["radars_used"] == "east west"
    offsets = [float(text) for text in attrs["input_offsets_s"].split()]
    assert len(offsets) == 5 and all(60 < offset < 140 for offset in offsets)


def test_an_ingest_that_was_ended_before_its_frame_is_finished_by_the_next(tmp_path, store, catalog, monkeypatch):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0)

    end_before_the_frame(monkeypatch, domain, store, catalog)
    assert set(states(catalog).values()) == {"framed"} and frame_rows(catalog) == {}
    assert take_in(domain, store, catalog).framed == 1
    assert len(json.loads(frame_rows(catalog)[T0]["inputs"])) == 2


def test_rays_after_now_are_looked_at_again(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0, radars=("west",))
    path = tmp_path / "in" / f"west_{times.compact(T0)}.h5"
    path.rename(path.with_name(f"west_{times.compact(T0 - timedelta(minutes=8))}.h5"))
    early = take_in(domain, store, catalog, now=T0 - timedelta(minutes=7))
    assert early.framed == 0 and "after now" in early.quarantined[0][1]
    assert take_in(domain, store, catalog).framed == 1


def test_the_order_of_arrival_does_not_matter(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    (tmp_path / "all").mkdir()
    put(tmp_path / "all", T0 - STEP, T0, T0 + STEP)
    files = sorted((tmp_path / "all").iterdir())
    for path in (files[2], files[5], files[0], files[4], files[1], files[3]):
        shutil.copy2(path, tmp_path / "in" / path.name)
        take_in(domain, store, catalog)
    one = {t: r["sha256"] for t, r in frame_rows(catalog).items()}
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.volumes))
        connection.execute(sa.delete(tables.frames))
    take_in(domain, store, catalog)
    assert {t: r["sha256"] for t, r in frame_rows(catalog).items()} == one and len(one) == 3


def test_a_damaged_volume_is_quarantined_and_the_other_radar_goes_on(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0)
    bad = tmp_path / "in" / f"east_{times.compact(T0)}.h5"
    bad.write_bytes(bad.read_bytes()[:5000])
    result = take_in(domain, store, catalog)
    assert result.framed == 1 and bad.name in result.quarantined[0][1]
    assert json.loads(frame_rows(catalog)[T0]["inputs"])[0]["radar"] == "west"
    (kept,) = (store.root / "quarantine/net").iterdir()
    assert kept.read_bytes() == bad.read_bytes()
    assert holdings(catalog, ["net"])[0].unusable == 1


def test_a_silent_radar_takes_no_part_and_never_reads_as_dry(tmp_path, store, catalog):
    import h5py

    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0)
    for radar in ("east", "west"):
        with h5py.File(tmp_path / "in" / f"{radar}_{times.compact(T0)}.h5", "r+") as file:
            for name in [n for n in file if n.startswith("dataset")]:
                file[name]["data1/data"][...] = 255
        result = take_in(domain, store, catalog)
        assert any("silent" in reason for _, reason in result.quarantined)
        if radar == "east":
            assert result.framed == 1 and frame_rows(catalog)[T0]["coverage"] < 0.999
            before = frame_rows(catalog)
    # both came again as silent: the frame of before stands, and nothing dry was written
    assert result.framed == 0 and frame_rows(catalog) == before


def test_a_volume_with_lost_sweeps_is_used_as_a_part(tmp_path, store, catalog, sample_data):
    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/klbb_20160601T150025Z.h5").write_bytes(path.read_bytes()[: int(0.95 * path.stat().st_size)])
    grid = {**GRID, "crs": "EPSG:32614", "centre": (-101.81, 33.65)}
    domain = feed(tmp_path / "in").model_copy(update={"grid": type(NETWORK.grid).model_validate(grid)})
    time = datetime(2016, 6, 1, 15, tzinfo=UTC)
    result = ingest(domain, store, catalog, time, time + STEP, NOW)
    assert (result.framed, result.partial) == (1, 1)
    (row,) = catalog.read(sa.select(tables.volumes))
    assert row["state"] == "partial" and "9 of 11 sweeps" in row["reason"]


def test_wrong_clocks_are_quarantined(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0, radars=("west",))
    path = tmp_path / "in" / f"west_{times.compact(T0)}.h5"
    path.rename(path.with_name(f"west_{times.compact(T0 + timedelta(hours=2))}.h5"))
    result = take_in(domain, store, catalog, end=T0 + timedelta(hours=3))
    assert result.framed == 0 and "the rays 2024-06-01T02:5" in result.quarantined[0][1]
    put(tmp_path / "in", T0, radars=("east",))
    early = take_in(domain, store, catalog, now=T0 - timedelta(minutes=5))
    assert "after now" in early.quarantined[0][1] and early.framed == 0
    assert take_in(domain, store, catalog).framed == 1  # when its time has come


def test_processes_make_the_same_frames(tmp_path, store, catalog):
    domain = feed(tmp_path / "in", processes=2)
    put(tmp_path / "in", T0 - STEP, T0)
    assert take_in(domain, store, catalog).framed == 2
    two = {t: r["sha256"] for t, r in frame_rows(catalog).items()}
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.volumes))
    take_in(feed(tmp_path / "in"), store, catalog)
    assert {t: r["sha256"] for t, r in frame_rows(catalog).items()} == two


def test_the_instant_of_a_volume():
    assert slot_of(T0 - timedelta(seconds=1), STEP) == T0
    assert slot_of(T0 + timedelta(seconds=60), STEP) == T0
    assert slot_of(T0 + timedelta(seconds=61), STEP) == T0 + STEP


def sample_domain(name: str, sample_data) -> Domain:
    from pipeline.settings import load
    from tests.conftest import PROJECT

    return load(PROJECT / "infra/domains/volumes.toml", None, {"NOWCAST_SAMPLE_DATA": str(sample_data)}).domain(name)


@pytest.mark.parametrize(
    ("name", "start", "end", "count", "coverage", "echo"),
    [
        ("montancy", "2021-01-14T10:15Z", "2021-01-14T10:40Z", 6, (0.82, 0.84), (0.34, 0.42)),
        ("captains_flat", "2018-12-20T06:00Z", "2018-12-20T06:18Z", 2, (0.99, 1.0), (0.06, 0.09)),
        ("belgium", "2019-06-06T00:00Z", "2019-06-06T00:10Z", 1, (0.87, 0.89), (0.41, 0.46)),
    ],
)
def test_real_radars(sample_data, store, catalog, name, start, end, count, coverage, echo):
    domain = sample_domain(name, sample_data)
    result = ingest(domain, store, catalog, times.parse_time(start), times.parse_time(end), NOW)
    assert (result.framed, result.quarantined) == (count, [])
    for row in frame_rows(catalog).values():
        assert coverage[0] <= row["coverage"] <= coverage[1] and echo[0] <= row["echo"] <= echo[1]
    assert Archive(store, domain).source().grid == domain_grid(domain)
    if name == "belgium":
        (row,) = frame_rows(catalog).values()
        assert [i["radar"] for i in json.loads(row["inputs"])] == ["behel", "bejab", "bewid"]


def test_sweeps_in_files_of_their_own_are_joined_by_cycle(sample_data, store, catalog):
    source = {
        "kind": "volumes",
        "uri": str(sample_data / "mf_avesnes_20230420"),
        "pattern": r"T_PAZ[A-E]63_C_LFPW_(?P<time>\d{14})\.h5",
        "join": "cycle",
    }
    grid = {**GRID, "centre": (3.81, 50.13)}
    domain = synthetic_domain("avesnes", cadence_minutes=5, grid=grid, source=source)
    start = datetime(2023, 4, 20, 6, 45, tzinfo=UTC)
    assert ingest(domain, store, catalog, start, start + timedelta(minutes=20), NOW).framed == 2
    assert sorted(states(catalog)) == ["radar_20230420T065000Z", "radar_20230420T065500Z"]


def test_chunks_are_joined_in_the_order_of_their_names(sample_data, tmp_path, store, catalog):
    import tarfile

    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(sample_data / "volumes/nexrad_level2/nexrad_level2_chunks_KLOT.tar.gz") as tar:
        for member in tar.getmembers():
            if member.isfile():
                (folder / member.name.rpartition("/")[2]).write_bytes(tar.extractfile(member).read())
    source = {
        "kind": "volumes",
        "uri": str(folder),
        "pattern": r"(?P<time>\d{8}-\d{6})-(?P<chunk>\d{3})-[SIE]",
        "time_format": "%Y%m%d-%H%M%S",
        "join": "chunks",
    }
    grid = {**GRID, "crs": "EPSG:32616", "centre": (-88.08, 41.6)}
    domain = synthetic_domain("klot", grid=grid, source=source)
    start = datetime(2026, 3, 28, 20, 10, tzinfo=UTC)
    now = datetime(2026, 11, 1, tzinfo=UTC)
    result = ingest(domain, store, catalog, start, start + timedelta(minutes=20), now)
    assert (result.framed, result.partial, result.quarantined) == (1, 0, [])
    next(folder.glob("*-005-I")).unlink()
    again = ingest(domain, store, catalog, start, start + timedelta(minutes=20), now)
    assert (again.framed, again.partial) == (1, 1)


def test_the_truth_comes_back_at_every_range_and_in_its_place(tmp_path):
    """Of one synthetic radar: bias and RMSE in dB by range, and the position, against the rain at the time seen."""
    site = {"longitude": 5.0, "latitude": 51.0, "altitude_m": 50.0}
    grid = {**GRID, "shape": (300, 300), "spacing_m": 1000.0}
    domain = synthetic_domain("one", grid=grid, source={"kind": "synthetic_radars", "seed": 21, "radars": {"r": site}})
    network = RadarNetwork(domain.source, domain)
    (ref,) = network.list(T0, T0)
    volume, _ = clean(network.read(ref, tmp_path), domain.quality)
    gridded = grid_volume(volume, domain_grid(domain))
    seen = np.full((300, 300), np.nan, np.float32)
    seen[gridded.window.slices] = gridded.dbz[0]
    truth = 10 * np.log10(200) + 16 * np.log10(np.maximum(network.rain.rain_rate(gridded.time), 1e-3))
    rows, columns = np.indices(seen.shape)
    away = np.hypot(rows - 149.5, columns - 149.5)
    for nearest, farthest in ((0, 50), (50, 100), (100, 150)):
        here = (away >= nearest) & (away < farthest) & (truth > 10) & (seen > 10)
        error = (seen - truth)[here]
        assert here.sum() > 100 and abs(error.mean()) < 0.3 and np.sqrt((error**2).mean()) < 1.6
    wet, dry_filled = np.maximum(truth, 0) * ~np.isnan(seen), np.maximum(np.nan_to_num(seen), 0)
    moved = {
        (dy, dx): np.corrcoef(shift(wet, (dy / 2, dx / 2), order=1).ravel(), dry_filled.ravel())[0, 1]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert max(moved, key=moved.get) == (0, 0)  # half a cell in any direction fits worse


def test_a_long_period_in_pieces_gives_the_frames_of_one_piece(tmp_path, monkeypatch):
    (tmp_path / "feed").mkdir()
    put(tmp_path / "feed", *(T0 + n * STEP for n in range(-2, 8)))
    made = {}
    for pieces in (96, 2):
        monkeypatch.setattr("pipeline.ingest_volumes.PIECE", pieces)  # at least six instants each
        store = Store(tmp_path / str(pieces))
        catalog = Catalog(f"sqlite:///{store.root / 'catalog.sqlite'}")
        seen: list[tuple[int, int]] = []
        show = partial(_append, seen)
        result = ingest(feed(tmp_path / "feed"), store, catalog, T0 - STEP, T0 + 7 * STEP, NOW, show)
        made[pieces] = {time: (row["sha256"], row["inputs"]) for time, row in frame_rows(catalog).items()}
        assert seen == [(n + 1, 20) for n in range(20)] and (result.framed, result.unchanged) == (9, 0)
        catalog.close()
    assert len(made[96]) == 9 and made[96] == made[2]


def _append(seen, done, total):
    seen.append((done, total))

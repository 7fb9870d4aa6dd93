"""Volumes that come late, as a part, damaged or not at all: which frame stands, and what it says of itself."""

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest
import sqlalchemy as sa
from scipy.ndimage import gaussian_filter

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.advection import move_forward
from pipeline.errors import StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.checks import frame_fault
from pipeline.frames.grayscale import ADVECTED, ECHO, NO_COVERAGE, NO_ECHO, Frame
from pipeline.ingest import ingest
from pipeline.packing import read_packed
from pipeline.radar.decode import DecodeOptions, read_volume
from pipeline.radar.nexrad import MESSAGE_HEADER, whole_part
from pipeline.sources.synthetic_faults import write_faulty
from pipeline.sources.synthetic_radars import RadarNetwork, write_volume
from pipeline.sources.volumes import VolumeFiles
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.test_ingest_volumes import (
    GRID,
    NETWORK,
    STEP,
    T0,
    end_before_the_frame,
    feed,
    frame_rows,
    put,
    states,
    take_in,
)

SYNTHETIC = RadarNetwork(NETWORK.source, NETWORK)


def inputs(catalog, time=T0) -> dict[str, dict]:
    return {one["radar"]: one for one in json.loads(frame_rows(catalog)[time]["inputs"])}


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("none", "framed", ""),
        ("truncated", "quarantined", "the file is cut off: "),
        ("damaged", "partial", "dataset1 is damaged inside"),
        ("partial", "partial", "6 of 7 sweeps"),
        ("hole", "partial", "has a hole of 61 degrees"),
        ("silent", "quarantined", "silent, which is not dry"),
    ],
)
def test_faults_on_the_way(tmp_path, store, catalog, fault, state, reason):
    domain = feed(tmp_path / "in")
    for radar, what in (("east", "none"), ("west", fault)):
        write_faulty(SYNTHETIC, tmp_path / "in", radar, T0, what)
    assert take_in(domain, store, catalog).framed == 1
    (row,) = catalog.read(sa.select(tables.volumes).where(tables.volumes.c.radar == "west"))
    assert row["state"] == state and reason in row["reason"]
    assert set(inputs(catalog)) == ({"east"} if state == "quarantined" else {"east", "west"})


def test_a_radar_slower_than_the_axis_is_carried_on_and_nothing_is_verified_there(tmp_path, root, store, catalog):
    domain = feed(tmp_path / "in").model_copy(update={"input_frames": 2, "lead_frames": 1, "model": "optical_flow"})
    put(tmp_path / "in", T0 - STEP, T0, radars=("east", "west"))
    put(tmp_path / "in", T0 + STEP, radars=("east",))
    take_in(domain, store, catalog)
    assert [one["carried"] for one in inputs(catalog, T0 + STEP).values()] == [False, True]
    frame = Archive(store, domain).read(T0 + STEP)
    carried = frame.state == ADVECTED
    whole = Archive(store, domain).read(T0)
    assert 0.1 < carried.mean() < 0.6 and not (carried & frame.observed).any()
    assert (carried | frame.observed).mean() > 0.97 * whole.observed.mean()
    report = operations.backfill(settings_for(root, domain), "net", T0 + STEP, T0 + STEP, NOW)
    attrs = read_packed(root / report.products[0]).attrs
    assert (attrs["radars_used"], attrs["radars_carried_on"]) == ("east", "west")
    # what is measured after all takes its place
    put(tmp_path / "in", T0 + STEP, radars=("west",))
    assert take_in(domain, store, catalog).framed == 1
    assert not any(one["carried"] for one in inputs(catalog, T0 + STEP).values())
    assert not (Archive(store, domain).read(T0 + STEP).state == ADVECTED).any()


def test_a_radar_is_not_carried_on_twice(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0 - 2 * STEP, T0 - STEP, radars=("east", "west"))
    put(tmp_path / "in", T0, T0 + STEP, radars=("east",))
    take_in(domain, store, catalog)
    assert set(inputs(catalog, T0)) == {"east", "west"} and set(inputs(catalog, T0 + STEP)) == {"east"}


def test_a_late_volume_does_not_cost_the_radars_whose_files_have_left(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0, radars=("east",))
    take_in(domain, store, catalog)
    before = frame_rows(catalog)[T0]
    next((tmp_path / "in").iterdir()).unlink()
    put(tmp_path / "in", T0, radars=("west",))
    late = take_in(domain, store, catalog)
    assert (late.framed, late.duplicates) == (0, 1) and frame_rows(catalog)[T0] == before
    (row,) = catalog.read(sa.select(tables.volumes).where(tables.volumes.c.radar == "west"))
    assert row["state"] == "duplicate" and "was framed with east" in row["reason"]
    again = take_in(domain, store, catalog)
    assert (again.framed, again.duplicates, again.unchanged) == (0, 0, 1)


def test_a_file_that_comes_again_as_less_does_not_replace_the_frame(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0, radars=("east", "west"))
    take_in(domain, store, catalog)
    before = frame_rows(catalog)[T0]["sha256"]
    for fault in ("truncated", "silent"):
        write_faulty(SYNTHETIC, tmp_path / "in", "west", T0, fault)
        assert take_in(domain, store, catalog).framed == 0
        assert frame_rows(catalog)[T0]["sha256"] == before
    assert states(catalog)[f"west_{times.compact(T0)}.h5"] == "quarantined"
    write_faulty(SYNTHETIC, tmp_path / "in", "west", T0)
    take_in(domain, store, catalog)
    assert frame_rows(catalog)[T0]["sha256"] == before


def test_frames_outside_the_period_are_left_to_the_ingest_that_has_all_of_them(tmp_path, store, catalog):
    """A volume for an earlier instant comes late into an ingest of a later period, and must not be forgotten."""
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0, T0 + STEP, radars=("east",))
    take_in(domain, store, catalog)
    put(tmp_path / "in", T0, radars=("west",))
    assert take_in(domain, store, catalog, start=T0 + STEP, end=T0 + STEP).framed <= 1
    assert set(inputs(catalog, T0)) == {"east"}
    assert take_in(domain, store, catalog).framed >= 1
    assert set(inputs(catalog, T0)) == {"east", "west"}


def test_a_nexrad_volume_that_avset_ended_is_whole(sample_data, tmp_path):
    """Nine of eleven cuts: whole if its last radial says that it is the last, cut off if not."""
    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    with whole_part(path, path.name, 2**28) as plain:
        data = bytearray(plain.path.read_bytes())
    ends, position = [], 24
    while position + MESSAGE_HEADER < len(data):
        kind, halfwords = data[position + 15], int.from_bytes(data[position + 12 : position + 14], "big")
        status = position + MESSAGE_HEADER + 21
        position += 12 + 2 * halfwords if kind == 31 else 2432
        if kind == 31 and data[status] in (2, 4):
            ends.append((position, status))
    assert len(ends) == 11
    end, status = ends[8]
    for code, said in ((2, ("9 of 11 sweeps",)), (4, ())):
        data[status] = code
        (tmp_path / "v").write_bytes(data[:end])
        volume = read_volume(tmp_path / "v", "KLBB", datetime(2016, 6, 1, 15, tzinfo=UTC), DecodeOptions())
        assert len(volume.sweeps) == 9 and volume.defects == said


def frame_of(pixels: np.ndarray) -> Frame:
    return Frame(pixels[None].astype(np.uint8), np.where(pixels > 0, ECHO, NO_ECHO).astype(np.uint8))


def test_whole_frames_that_are_no_rain():
    domain, before = synthetic_domain(), {"coverage": 1.0, "echo": 0.1}
    rng = np.random.default_rng(0)
    usual = frame_of(np.where(rng.random((64, 64)) < 0.4, rng.integers(90, 200, (64, 64)), 0))
    assert frame_fault(usual, domain, T0, before) == ""
    assert frame_fault(frame_of(np.zeros((64, 64))), domain, T0, before) == ""  # dry
    assert "one value" in frame_fault(frame_of(np.full((64, 64), 140)), domain, T0, None)
    everywhere = frame_of(rng.integers(90, 200, (64, 64)))
    assert "interference" in frame_fault(everywhere, domain, T0, before)
    assert frame_fault(everywhere, domain, T0, None) == ""
    off = domain.model_copy(update={"quality": domain.quality.model_copy(update={"max_echo_jump": 0.0})})
    assert frame_fault(everywhere, off, T0, before) == ""
    # a radar that comes back brings echo, but no larger share of what is observed
    part = Frame(usual.pixels, np.where(np.arange(64) < 5, usual.state, NO_COVERAGE).astype(np.uint8))
    seen = {"coverage": float(part.observed.mean()), "echo": float((part.state == ECHO).mean())}
    assert frame_fault(usual, domain, T0, seen) == ""
    dry_part = {"coverage": 0.5, "echo": 0.0}  # one of two radars, and no rain where it sees
    assert frame_fault(everywhere, domain, T0, dry_part) == ""


def scans_of(folder, sample_data, count, since=0):
    """The first ``count`` single-sweep files of Avesnes, in the order in which they were made."""
    paths = sorted((sample_data / "mf_avesnes_20230420").iterdir(), key=lambda p: p.stem[-14:])
    for path in paths[since:count]:
        shutil.copy2(path, folder / path.name)


def avesnes(folder):
    source = {
        "kind": "volumes",
        "uri": str(folder),
        "pattern": r"T_PAZ[A-E]63_C_LFPW_(?P<time>\d{14})\.h5",
        "join": "cycle",
    }
    grid = {**GRID, "centre": (3.81, 50.13)}
    return synthetic_domain("avesnes", cadence_minutes=5, grid=grid, source=source)


def test_a_cycle_is_waited_for_until_its_sweeps_are_there(sample_data, tmp_path, store, catalog):
    """A first high sweep alone would read as dry."""
    folder = tmp_path / "in"
    folder.mkdir()
    start = datetime(2023, 4, 20, 6, 45, tzinfo=UTC)
    for minute, count, frames in ((52, 2, 0), (54, 4, 0), (55, 5, 1), (57, 7, 1)):
        scans_of(folder, sample_data, count)
        now = start.replace(minute=minute)
        ingest(avesnes(folder), store, catalog, start, start + timedelta(minutes=20), now)
        assert len(frame_rows(catalog)) == frames
    # when the time of the second is over, what is there of it is used, as a part
    late = ingest(avesnes(folder), store, catalog, start, start + timedelta(minutes=20), NOW)
    assert "2 files of the cycle, others have 5" in late.defects[0]
    scans_of(folder, sample_data, 10)
    ingest(avesnes(folder), store, catalog, start, start + timedelta(minutes=20), NOW)
    whole = {time: row["sha256"] for time, row in frame_rows(catalog).items()}
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.volumes))
        connection.execute(sa.delete(tables.frames))
    ingest(avesnes(folder), store, catalog, start, start + timedelta(minutes=20), NOW)
    assert {time: row["sha256"] for time, row in frame_rows(catalog).items()} == whole and len(whole) == 2


def test_a_radar_that_jitters_around_the_tolerance_loses_no_frame(tmp_path, store, catalog):
    """Every other volume comes a few seconds too late for its instant."""
    folder, domain = tmp_path / "in", feed(tmp_path / "in")
    moved = SYNTHETIC.config.radars["west"]
    for n in range(4):
        time = T0 + n * STEP
        path = folder / f"west_{times.compact(time)}.h5"
        late = timedelta(seconds=58 + 6 * (n % 2)) - timedelta(seconds=60)  # sweeps last 20 s, the low ones count
        scans = SYNTHETIC.scan("west", time)
        shift = time + late - scans[0].start
        write_volume(path, "west", moved, time, tuple(replace(s, start=s.start + shift) for s in scans))
    take_in(domain, store, catalog, end=T0 + 4 * STEP)
    made = sorted(frame_rows(catalog))
    assert made == [made[0] + n * STEP for n in range(len(made))] and len(made) >= 4


def test_the_same_bytes_with_a_new_date_do_not_cost_the_motion(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0 - STEP, T0, radars=("west",))
    take_in(domain, store, catalog)
    before = frame_rows(catalog)[T0]
    (tmp_path / "in" / f"west_{times.compact(T0 - STEP)}.h5").unlink()
    os.utime(tmp_path / "in" / f"west_{times.compact(T0)}.h5", (0, T0.timestamp()))
    again = take_in(domain, store, catalog)
    assert (again.framed, again.duplicates) == (0, 1) and frame_rows(catalog)[T0] == before


def test_moving_a_field_keeps_what_was_measured_where(tmp_path):
    """Coverage stays as it is, and what would flow in from outside stays as it was measured."""
    rng = np.random.default_rng(3)
    rain = gaussian_filter(rng.normal(0, 1, (120, 200)), 4)
    rain = np.where(rain > 0.05, 20 + 400 * rain, 0).astype(np.float32).clip(0, 60)
    before, now, then = (rain[None, :, 40 - 6 * n : 160 - 6 * n].copy() for n in range(3))
    hole = np.s_[:, 30:40, 50:60]
    before[hole] = now[hole] = np.nan
    moved = move_forward(before, now, 1.0, 0.0, 60.0)
    assert np.array_equal(np.isnan(moved), np.isnan(now))
    inner = np.s_[:, 20:-20, 20:-20]
    error, stale = (np.nanmean(np.abs(field[inner] - then[inner])) for field in (moved, now))
    assert error < 0.4 * stale
    edge = np.s_[:, 20:-20, :3]
    assert np.nanmean(np.abs(moved[edge] - now[edge])) < 2.0


def test_late_is_when_the_file_arrives(tmp_path):
    late = timedelta(minutes=7)
    on_time, delayed = (write_faulty(SYNTHETIC, tmp_path, "east", T0, late=by) for by in (timedelta(0), late))
    assert on_time == delayed
    (ref,) = (r for r in SYNTHETIC.list(T0, T0) if r.radar == "east")
    assert delayed.stat().st_mtime == pytest.approx((ref.arrived_at + late).timestamp())


def test_what_the_source_says_of_its_radars_reaches_the_frame(tmp_path, store, catalog):
    """Blocked sectors, the way of combining, and the least coverage."""
    west = {"azimuths": [200, 340], "below_elevation": 90}
    put_in = tmp_path / "in"
    frames = {}
    cases = {"plain": {}, "max": {"mosaic": "max"}, "blocked": {"blocked": {"west": [west], "east": [west]}}}
    for name, changes in cases.items():
        domain = feed(put_in, **changes).model_copy(update={"name": name})
        put(put_in, T0)
        take_in(domain, store, catalog)
        frames[name] = Archive(store, domain).read(T0)
    strong = {name: (frame.rain > 118).sum() for name, frame in frames.items()}
    assert strong["max"] > strong["plain"]
    assert frames["blocked"].observed.mean() < frames["plain"].observed.mean() - 0.05
    (put_in / f"east_{times.compact(T0)}.h5").unlink()
    quality = NETWORK.quality.model_copy(update={"min_coverage": 0.999})
    refused = take_in(feed(put_in).model_copy(update={"name": "whole", "quality": quality}), store, catalog)
    assert refused.framed == 0 and "quality.min_coverage" in refused.quarantined[0][1]


def test_an_unusable_clutter_map_or_a_full_disk_is_not_the_volumes_fault(tmp_path, store, catalog):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0)
    path = store.clutter("net") / "west.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04broken")
    with pytest.raises(StoreUnavailable, match=r"west\.npz"):
        take_in(domain, store, catalog)
    path.unlink()
    assert take_in(domain, store, catalog).framed == 1 and set(states(catalog).values()) == {"framed"}


def test_of_two_volumes_in_an_instant_the_newer_is_taken_after_an_ended_ingest(tmp_path, store, catalog, monkeypatch):
    domain, half = feed(tmp_path / "in"), STEP / 2
    put(tmp_path / "in", T0 - half, radars=("west",))
    take_in(domain, store, catalog)
    put(tmp_path / "in", T0, radars=("west",))

    end_before_the_frame(monkeypatch, domain, store, catalog)
    assert take_in(domain, store, catalog).framed >= 1
    assert inputs(catalog)["west"]["key"] == f"west_{times.compact(T0)}.h5"


def test_a_volume_that_takes_all_the_memory_is_tried_again_and_the_rest_goes_on(tmp_path, store, catalog, monkeypatch):
    domain = feed(tmp_path / "in")
    put(tmp_path / "in", T0)
    read = VolumeFiles.read

    def exhausted(self, ref, scratch):
        if ref.radar == "east":
            raise MemoryError
        return read(self, ref, scratch)

    with monkeypatch.context() as patch:
        patch.setattr(VolumeFiles, "read", exhausted)
        result = take_in(domain, store, catalog)
    assert result.framed == 1 and "not enough memory" in result.quarantined[0][1] and set(inputs(catalog)) == {"west"}
    assert take_in(domain, store, catalog).framed == 1 and set(inputs(catalog)) == {"east", "west"}


def test_one_sweep_file_with_a_wrong_clock_does_not_cost_its_cycle(sample_data, tmp_path, store, catalog):
    folder = tmp_path / "in"
    folder.mkdir()
    scans_of(folder, sample_data, 5)
    with h5py.File(next(folder.glob("T_PAZB63*")), "r+") as file:
        for edge in ("start", "end"):
            file["dataset1/what"].attrs[f"{edge}date"] = np.bytes_("20220420")
        for name in [n for n in file["dataset1"].get("how", {}).attrs if "T" in n] if "how" in file["dataset1"] else []:
            del file["dataset1/how"].attrs[name]
    start = datetime(2023, 4, 20, 6, 45, tzinfo=UTC)
    result = ingest(avesnes(folder), store, catalog, start, start + timedelta(minutes=20), NOW)
    assert result.framed == 1 and "the others of 2023-04-20T06:5" in result.defects[0]

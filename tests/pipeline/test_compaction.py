"""Closed days in one object: nothing is lost, late frames count, damage is found, and a kill leaves every frame."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.compaction import compact
from pipeline.errors import DamagedFrame
from pipeline.frames.archive import Archive, checksum
from pipeline.frames.packed import DayObjects
from pipeline.ingest import forget_damaged
from pipeline.rebuild import rebuild
from pipeline.storage import Store
from tests.conftest import NOW, synthetic_domain
from tests.pipeline.killed import killed_at_each_step
from tests.pipeline.test_catalog import SOURCE, frame

DAY = datetime(2024, 6, 1, tzinfo=UTC)
STEP = timedelta(minutes=10)
SLOTS = (0, 3, 4, 143)
SINGLE = "2024/06/01.zarr/frames/c/3/0/0/0"


def write(store, catalog, seeds: dict[int, int], day=DAY) -> None:
    """Frames by slot, with their rows, as an ingest writes them."""
    domain = synthetic_domain()
    archive = Archive(store, domain)
    for slot, seed in seeds.items():
        with catalog.write() as connection:
            digest = archive.write(day + slot * STEP, frame(seed), SOURCE)
            row = {column.name: 0 for column in tables.frames.columns}
            row |= {"domain": "small", "valid_time": times.seconds(day + slot * STEP), "sha256": digest}
            row |= {"source_key": f"file {slot}", "inputs": ""}
            catalog.upsert(connection, tables.frames, [row])


def held(store) -> dict[int, str]:
    """Slot -> checksum of what the archive gives, read anew."""
    archive = Archive(store, synthetic_domain())
    return {(time - DAY) // STEP: checksum(archive.read(time)) for time in archive.times()}


def wanted(seeds: dict[int, int]) -> dict[int, str]:
    return {slot: checksum(frame(seed)) for slot, seed in seeds.items()}


def objects(store) -> int:
    return sum(p.is_file() and p.name != "zarr.json" for p in (store.archive("small") / "2024").rglob("*"))


def packed_object(store):
    return store.archive("small") / "2024/06/01.zarr/packed/c/0/0/0/0"


@pytest.fixture
def packed(store, catalog):
    """A compacted day; the frames that it must hold."""
    seeds = {slot: slot + 1 for slot in SLOTS}
    write(store, catalog, seeds)
    done = compact(synthetic_domain(), store, catalog, NOW)
    assert (done.days, done.objects_before, done.objects_after, done.problems) == (1, len(SLOTS), 1, [])
    return seeds


def test_a_compacted_day_is_one_object_with_the_same_frames(store, catalog, packed):
    assert objects(store) == 1 and held(store) == wanted(packed)
    assert Archive(store, synthetic_domain()).read(DAY + STEP) is None
    assert compact(synthetic_domain(), store, catalog, NOW).days == 0


def test_a_late_frame_counts_and_is_merged_by_the_next_compaction(store, catalog, packed):
    write(store, catalog, {3: 77, 9: 78})  # one anew, one more
    late = packed | {3: 77, 9: 78}
    assert held(store) == wanted(late) and objects(store) == 3
    assert compact(synthetic_domain(), store, catalog, NOW).objects_after == 1
    assert held(store) == wanted(late) and objects(store) == 1


def test_a_day_is_closed_two_days_after_its_end(store, catalog):
    write(store, catalog, {0: 1, 1: 2})
    closed = DAY + timedelta(days=3)
    assert compact(synthetic_domain(), store, catalog, closed - timedelta(seconds=1)).days == 0
    assert compact(synthetic_domain(), store, catalog, closed).days == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda store, catalog: _damage(store.archive("small") / SINGLE), "00:30:00Z is damaged"),
        (lambda store, catalog: _change(catalog, sha256="0" * 64), "has checksum"),
        (lambda store, catalog: _change(catalog, valid_time=times.seconds(DAY + 9 * STEP)), "not in the catalog"),
    ],
    ids=["damaged", "other checksum", "no row"],
)  # fmt: skip
def test_a_day_that_is_not_as_the_catalog_says_stays_as_it_is(store, catalog, spoil, said):
    write(store, catalog, {slot: slot for slot in SLOTS})
    spoil(store, catalog)
    before = sorted(p for p in store.archive("small").rglob("*") if p.is_file())
    done = compact(synthetic_domain(), store, catalog, NOW)
    assert done.days == 0 and len(done.problems) == 1
    assert re.search(said, done.problems[0]), done.problems
    assert sorted(p for p in store.archive("small").rglob("*") if p.is_file()) == before


def _damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _change(catalog, **values):
    f = tables.frames.c
    with catalog.write() as connection:
        here = f.valid_time == times.seconds(DAY + 3 * STEP)
        connection.execute(sa.update(tables.frames).where(here).values(**values))


def test_killed_at_any_step_every_frame_can_be_read_and_the_next_run_ends_it(store, catalog):
    seeds = {slot: slot + 1 for slot in SLOTS}
    write(store, catalog, seeds)
    compact(synthetic_domain(), store, catalog, NOW)
    deaths = 0
    write(store, catalog, {3: 50, 7: 51})
    late = seeds | {3: 50, 7: 51}
    root, url = store.root, catalog.url
    catalog.close()

    def work():
        mine = Catalog(url)
        assert not compact(synthetic_domain(), Store(root), mine, NOW).problems

    for _ in killed_at_each_step(work):
        deaths += 1
        assert held(Store(root)) == wanted(late)
        write(Store(root), Catalog(url), {3: 50, 7: 51})  # so that the next run has all its steps again
    assert deaths >= 5
    assert held(store) == wanted(late) and objects(store) == 1


def test_a_frame_that_comes_while_its_day_is_compacted_is_not_lost(store, catalog, monkeypatch):
    write(store, catalog, {slot: slot for slot in SLOTS})
    prepare = Archive.prepare_packed

    def late(self, day):  # after the frames were copied, before the packed object is put
        prepare(self, day)
        monkeypatch.undo()
        write(store, Catalog(catalog.url), {3: 90})

    monkeypatch.setattr(Archive, "prepare_packed", late)
    assert "came in at this moment" in compact(synthetic_domain(), store, catalog, NOW).problems[0]
    assert held(store) == wanted({slot: slot for slot in SLOTS} | {3: 90})
    assert compact(synthetic_domain(), store, catalog, NOW).days == 1
    assert held(store) == wanted({slot: slot for slot in SLOTS} | {3: 90})


def test_a_damaged_frame_of_a_packed_day_is_set_aside_alone(store, catalog, packed):
    path = packed_object(store)
    content = bytearray(path.read_bytes())
    content[10] ^= 1  # in the first frame
    path.write_bytes(content)
    archive = Archive(store, synthetic_domain())
    with pytest.raises(DamagedFrame, match="2024-06-01T00:00:00Z"):
        archive.read(DAY)
    forget_damaged(archive, catalog, synthetic_domain(), DAY)
    rest = {slot: seed for slot, seed in packed.items() if slot != 0}
    assert held(store) == wanted(rest) and archive.read(DAY) is None
    assert {row["valid_time"] for row in catalog.read(sa.select(tables.frames))} == {
        times.seconds(DAY + slot * STEP) for slot in rest
    }
    assert len(list((store.root / "quarantine" / "small").iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 1, 30, -1, -2000])
def test_a_packed_day_without_its_index_is_set_aside_whole(store, catalog, packed, cut):
    write(store, catalog, {9: 9})  # this one has an object of its own
    path = packed_object(store)
    path.write_bytes(path.read_bytes()[:cut])
    archive = Archive(store, synthetic_domain())
    with pytest.raises(DamagedFrame):
        archive.read(DAY)
    forget_damaged(archive, catalog, synthetic_domain(), DAY)
    assert held(store) == wanted({9: 9})
    assert [row["source_key"] for row in catalog.read(sa.select(tables.frames))] == ["file 9"]


def test_the_old_frame_does_not_come_back_when_the_late_one_is_damaged(store, catalog, packed):
    write(store, catalog, {3: 77})
    _damage(store.archive("small") / SINGLE)
    archive = Archive(store, synthetic_domain())
    forget_damaged(archive, catalog, synthetic_domain(), DAY + 3 * STEP)
    assert archive.read(DAY + 3 * STEP) is None
    assert 3 not in held(store)


def test_a_rebuild_finds_the_frames_of_compacted_days_and_when_single_ones_were_written(store, catalog, packed):
    write(store, catalog, {9: 9})
    before = {row["valid_time"]: row for row in catalog.read(sa.select(tables.frames))}
    assert rebuild([synthetic_domain()], store, catalog).frames == len(SLOTS) + 1
    assert {row["valid_time"]: row for row in catalog.read(sa.select(tables.frames))} == before  # what it knows stays
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.frames))
    rebuild([synthetic_domain()], store, catalog)
    after = {row["valid_time"]: row for row in catalog.read(sa.select(tables.frames))}
    assert {time: row["sha256"] for time, row in after.items()} == {time: row["sha256"] for time, row in before.items()}
    written = {(tables.from_seconds(time) - DAY) // STEP for time, row in after.items() if row["framed_at"] > 1.6e9}
    assert written == {9}


def test_other_programs_read_a_packed_day_with_zarr(store, packed):
    import zarr

    array = zarr.open_group(store.archive("small") / "2024/06/01.zarr", mode="r")["packed"]
    assert np.array_equal(array[3, 0], frame(packed[3]).pixels[0]) and (array[5] == 255).all()


def test_what_was_packed_is_read_back_before_a_single_object_goes(store, catalog, monkeypatch):
    seeds = {slot: slot + 1 for slot in SLOTS}
    write(store, catalog, seeds)
    pack = DayObjects.pack

    def swaps(self, frames):
        slots = sorted(frames)
        pack(self, {**frames, **({slots[0]: frames[slots[1]]} if slots else {})})  # and nothing, when it is undone

    monkeypatch.setattr(DayObjects, "pack", swaps)
    (problem,) = compact(synthetic_domain(), store, catalog, NOW).problems
    assert "does not read back" in problem and held(store) == wanted(seeds)


def test_a_frame_that_comes_while_a_day_is_compacted_stays_and_counts(store, catalog, monkeypatch):
    seeds = {slot: slot + 1 for slot in SLOTS}
    write(store, catalog, seeds)
    pack = DayObjects.pack

    late, singles = [], DayObjects.singles

    def then_comes_one(self, frames):
        pack(self, frames)
        late.append(3)

    def with_the_late_one(self):  # asked for when the single objects are to go
        if late:
            write(store, catalog, {late.pop(): 99})
        return singles(self)

    monkeypatch.setattr(DayObjects, "pack", then_comes_one)
    monkeypatch.setattr(DayObjects, "singles", with_the_late_one)
    assert compact(synthetic_domain(), store, catalog, NOW).problems == []
    assert held(store) == wanted({**seeds, 3: 99}) and (store.archive("small") / SINGLE).is_file()

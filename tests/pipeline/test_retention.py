"""What retention removes and what it never does; catalog and stores agree, also after a kill at any step."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, packing, publish
from pipeline.catalog import Catalog
from pipeline.frames.archive import Archive, checksum
from pipeline.rebuild import rebuild
from pipeline.retention import housekeep
from pipeline.settings import Retention
from pipeline.storage import Store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, digests, issue, write_model
from tests.pipeline.killed import killed_at_each_step

ALL = Retention(frames_days=30, products_days=30, scores_days=30, quarantine_days=30, catalog_days=30)
LATER = datetime.now(UTC) + timedelta(days=400)
LAST = T0 + 2 * STEP


@pytest.fixture(scope="module")
def verified_root(tmp_path_factory):
    """Three verified hindcasts by the last frame."""
    root = tmp_path_factory.mktemp("retention") / "root"
    settings = settings_for(root, synthetic_domain(model="last_frame"))
    assert backfill(settings, T0, LAST).verify.scored == 3
    return root


@pytest.fixture
def settings(root, verified_root):
    shutil.copytree(verified_root, root)
    return settings_for(root, synthetic_domain(model="last_frame")).model_copy(update={"retention": ALL})


def keep_house(settings, now=LATER, dry_run=False):
    store, catalog = operations.open_root(settings)
    return housekeep(settings, store, catalog, now, dry_run)


def went(done) -> set[str]:
    return {f"{one.part} {one.name}" for one in done.gone}


def why(done, part: str) -> set[str]:
    return {reason for of_part, _, reason in done.stays if of_part == part}


def rows_without_objects(settings) -> list[str]:
    """Rows of the catalog that point to nothing, or to something else."""
    store, catalog = operations.open_root(settings)
    archive = Archive(store, settings.domain("small"))
    missing = []
    for row in catalog.read(sa.select(tables.frames)):
        frame = archive.read(tables.from_seconds(row["valid_time"]))
        if frame is None or checksum(frame) != row["sha256"]:
            missing.append(f"frame {row['valid_time']}")
    for row in catalog.read(sa.select(tables.cycles).where(tables.cycles.c.state == "published")):
        path = store.root / row["path"]
        if not path.is_file() or packing.read_digest(path) != row["content_digest"] or not publish.is_there(store, row):
            missing.append(row["path"])
    missing += [r["path"] for r in catalog.read(sa.select(tables.scores)) if not (store.root / r["path"]).is_file()]
    catalog.close()
    return missing


def contents(settings) -> dict[str, int]:
    """What a rebuild from the stores alone finds."""
    store = Store(settings.root)
    fresh = Catalog(f"sqlite:///{settings.root / 'fresh.sqlite'}")
    found = rebuild([settings.domain("small")], store, fresh)
    fresh.close()
    (settings.root / "fresh.sqlite").unlink()
    assert found.damaged == []
    return {"frames": found.frames, "forecasts": found.forecasts, "scores": found.scores}


def test_by_default_everything_stays_for_ever(settings):
    before = contents(settings)
    done = keep_house(settings.model_copy(update={"retention": Retention()}))
    assert done.gone == [] and all("kept for ever" in reason for _, _, reason in done.stays)
    assert contents(settings) == before == {"frames": 11, "forecasts": 3, "scores": 1}


def test_what_is_old_and_verified_goes_and_the_newest_product_stays(settings):
    shown = keep_house(settings, dry_run=True)
    assert contents(settings)["forecasts"] == 3
    done = keep_house(settings)
    assert went(done) == went(shown)
    assert went(done) == {
        "products hindcast 2024-06-01T02:00:00Z", "products hindcast 2024-06-01T02:10:00Z", "frames 2024-06-01"
    }  # fmt: skip
    assert why(done, "products") == {"the newest hindcast product"}
    assert why(done, "scores") == {"its forecasts are still there"}
    assert contents(settings) == {"frames": 0, "forecasts": 1, "scores": 1}
    assert rows_without_objects(settings) == []
    journal = [e for e in Store(settings.root).read_journal() if e["event"] == "removed"]
    assert [f"{e['part']} {e['name']}" for e in journal] == [f"{one.part} {one.name}" for one in done.gone]
    assert keep_house(settings).gone == []


def test_what_was_removed_can_be_made_again(settings):
    before = digests(settings)
    keep_house(settings)
    assert backfill(settings, T0, LAST).ingest.framed == 11
    assert digests(settings) == before


def test_age_counts_from_the_writing_not_from_the_time_of_the_data(settings):
    done = keep_house(settings, now=datetime.now(UTC) + timedelta(days=29))  # the data are of 2024
    assert done.gone == []
    assert any("written less than 30 days ago" in reason for reason in why(done, "frames"))


def test_a_forecast_that_is_not_verified_keeps_itself_its_inputs_and_its_observations(root):
    settings = settings_for(root, synthetic_domain(model="last_frame")).model_copy(update={"retention": ALL})
    midnight = datetime(2024, 6, 2, tzinfo=UTC)
    operations.ingest(settings, "small", midnight - 5 * STEP, midnight + 5 * STEP, NOW)
    issue(settings, midnight, kind="hindcast")  # inputs lie in the day before
    issue(settings, midnight + STEP, kind="hindcast")
    done = keep_house(settings)
    assert went(done) == set()
    assert why(done, "frames") == {"inputs or observations of forecasts that are not verified"}
    assert why(done, "products") == {"not fully verified", "the newest hindcast product"}
    operations.verify(settings, "small", None, None, NOW)
    assert went(keep_house(settings)) >= {"products hindcast 2024-06-02T00:00:00Z", "frames 2024-06-01"}


def test_a_forecast_whose_last_observations_never_came_is_waited_for_a_week(root):
    settings = settings_for(root, synthetic_domain(model="last_frame"))
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 2 * STEP, NOW)
    issue(settings, T0, kind="hindcast")
    operations.verify(settings, "small", None, None, NOW)
    settings = settings.model_copy(update={"retention": Retention(frames_days=0.001)})
    later = datetime.now(UTC)  # the making is at NOW, months before; reading it back shows the reason
    (row,) = Catalog(settings.catalog).read(sa.select(tables.cycles))
    assert row["verified"] == "partly" and row["verified_reason"].startswith("no observation at")
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.update(tables.cycles).values(issue_time=(later - timedelta(days=6)).timestamp()))
    assert went(keep_house(settings, later + timedelta(hours=1))) == set()
    assert went(keep_house(settings, later + timedelta(days=2))) == {"frames 2024-06-01"}


def test_training_data_of_a_model_in_use_stay(settings, tmp_path):
    trained = {"periods": {"small": "2024-06-01T00:00:00Z/2024-06-01T06:00:00Z"}}
    other = synthetic_domain("other", model=write_model(tmp_path / "tiny", training=trained))
    used = settings.model_copy(update={"domains": settings.domains | {"other": other}})
    assert why(keep_house(used), "frames") >= {"training data of tiny"}
    (tmp_path / "tiny" / "card.json").write_text("{")
    assert any("cannot be read" in reason for reason in why(keep_house(used), "frames"))
    assert contents(settings)["frames"] == 11
    assert "frames 2024-06-01" in went(keep_house(settings))  # no domain names it any more


def test_after_the_loss_of_the_catalog_nothing_is_removed(settings):
    for path in settings.root.glob("catalog.sqlite*"):
        path.unlink()
    done = keep_house(settings)
    assert done.gone == []
    assert contents(settings) == {"frames": 11, "forecasts": 3, "scores": 1}
    assert all(any("not in the catalog" in r for r in why(done, part)) for part in ("products", "scores", "frames"))


def test_the_target_of_latest_and_what_others_work_on_stay(settings):
    store, catalog = operations.open_root(settings)
    (row, *_) = catalog.read(sa.select(tables.cycles).order_by(tables.cycles.c.reference_time))
    store.latest("small").write_text(json.dumps({"path": row["path"], "reference_time": "2024-06-01T02:00:00Z"}))
    with catalog.lease("cycle/small/hindcast/2024-06-01T02:10:00Z"):
        done = keep_house(settings)
    assert why(done, "products") == {
        "latest.json points to it", "another process works on it", "the newest hindcast product"
    }  # fmt: skip
    with catalog.lease("housekeeping/small"):
        assert keep_house(settings).problems == ["another process keeps house for small"]


def test_scores_go_after_their_forecasts_and_rows_of_volumes_after_their_frames(settings):
    catalog = Catalog(settings.catalog)
    with catalog.write() as connection:  # a newer forecast, so that those of the day may go
        c = tables.cycles.c
        last = connection.execute(sa.select(tables.cycles).order_by(c.reference_time.desc())).mappings().first()
        newer = dict(last) | {"reference_time": last["reference_time"] + 864000, "path": "elsewhere"}
        catalog.upsert(connection, tables.cycles, [newer])
        bad = {column.name: 0 for column in tables.volumes.columns} | {"domain": "small", "radar": "", "sha256": ""}
        rows = [
            bad | {"key": state, "etag": "e", "state": state, "reason": "?"}
            for state in ("quarantined", "reviewed", "dropped", "future", "off_axis")
        ]
        catalog.upsert(connection, tables.volumes, rows)
        ended = {"domain": "small", "kind": "k", "subject": "s", "text": "", "told": ""}
        catalog.upsert(connection, tables.alerts, [ended | {"raised_at": 1.0, "ended_at": 2.0}])
        catalog.upsert(connection, tables.alerts, [ended | {"raised_at": 3.0, "ended_at": 0.0}])
    done = keep_house(settings)
    assert contents(settings) == {"frames": 0, "forecasts": 0, "scores": 0}
    assert {row["state"] for row in catalog.read(sa.select(tables.volumes))} == {"quarantined", "reviewed"}
    assert [row["raised_at"] for row in catalog.read(sa.select(tables.alerts))] == [3.0]
    assert any(one.part == "scores" for one in done.gone)


def test_killed_at_any_step_no_row_points_to_nothing_and_the_next_run_ends_it(settings, verified_root):
    def work():
        assert not keep_house(settings).problems

    deaths = 0
    for _ in killed_at_each_step(work, every=2):
        deaths += 1
        assert rows_without_objects(settings) == []
        keep_house(settings)
        store, catalog = operations.open_root(settings)
        assert len(catalog.read(sa.select(tables.frames))) == 0
        assert len([p for p in store.archive("small").rglob("*") if p.is_file()]) == 1  # what all frames share
        products = {p.name.split(".")[0] for p in (settings.root / "products").rglob("*") if p.is_file()}
        assert products == {"small_20240601T022000Z_r1"}
        catalog.close()
        shutil.rmtree(settings.root)
        shutil.copytree(verified_root, settings.root)
    assert deaths >= 12
    assert rows_without_objects(settings) == []


def test_a_frame_that_is_written_while_its_day_is_removed_stays(settings, monkeypatch):
    """Between the rows and the bytes of a removal an ingest takes a part of the day in again."""
    store, catalog = operations.open_root(settings)
    write, framed = Catalog.write, []

    def between(self, *arguments):
        if not framed and not catalog.read(sa.select(tables.frames)):
            framed.append(0)
            framed.append(operations.ingest(settings, "small", T0, T0 + STEP, NOW).ingest.framed)
        return write(self, *arguments)

    monkeypatch.setattr(Catalog, "write", between)
    housekeep(settings, store, catalog, LATER)
    assert framed == [0, 2]
    assert Archive(store, settings.domain("small")).times() == [T0, T0 + STEP]
    assert rows_without_objects(settings) == []

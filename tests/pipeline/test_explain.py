"""Explanations of products and of missing ones: the true cause is in the first line, the evidence below."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from flows import console
from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.catalog import Catalog
from pipeline.explain import explain
from pipeline.explain_text import lines, verdict
from pipeline.ingest import ingest
from pipeline.storage import Store
from tests.conftest import NOW, brisbane_domain, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, issue, remove_frames, write_model
from tests.pipeline.test_ingest_volumes import feed, put, take_in


def told(settings, time, name="small", now=NOW):
    store, catalog = operations.open_root(settings)
    found = explain(settings.domain(name), store, catalog, time, now)
    catalog.close()
    return found, verdict(found, settings.domain(name)), "\n".join(lines(found, settings.domain(name)))


@pytest.fixture
def quick(root):
    return settings_for(root, synthetic_domain(model="last_frame"))


def test_a_product_is_traced_to_its_model_frames_and_files(root, tmp_path):
    trained = {"data": {"elsewhere": {"kind": "synthetic"}}, "seed": 7, "command": "nowcast train elsewhere"}
    model = write_model(tmp_path / "tiny", training=trained)
    settings = settings_for(root, synthetic_domain(model=model))
    operations.ingest(settings, "small", T0 - 5 * STEP, T0 + STEP, NOW)
    remove_frames(settings, T0 - 2 * STEP)
    with Catalog(settings.catalog).write() as connection:
        f = tables.frames.c
        connection.execute(sa.delete(tables.frames).where(f.valid_time == times.seconds(T0 - 2 * STEP)))
    issue(settings, T0)
    found, said, text = told(settings, T0)
    assert said == "published: hindcast r1 by tiny"
    (cycle,) = found.cycles
    assert (cycle.stored, cycle.observed, cycle.model.matches) == ("whole", (1, 4), "the same")
    assert [frame.role for frame in found.frames] == ["measured", "measured", "filled", "measured", "measured"]
    assert [len(frame.volumes) for frame in found.frames] == [1, 1, 0, 1, 1]
    for expected in ("FILLED", "seed: 7", "nowcast train elsewhere", "verified  not yet", "    <- "):
        assert expected in text
    (tmp_path / "tiny" / "weights.safetensors").write_bytes(b"other")
    (root / cycle.path).write_bytes((root / cycle.path).read_bytes()[:-100])
    found, said, text = told(settings, T0)
    assert f"NOT WHOLE: {cycle.path}" in said and "DAMAGED" in text
    (root / cycle.path).unlink()
    assert told(settings, T0)[0].cycles[0].stored.startswith("LOST")


def test_a_fallback_and_another_model_of_the_same_name_are_said(root, tmp_path):
    settings = settings_for(root, synthetic_domain(model=write_model(tmp_path / "tiny", cadences_minutes=[5])))
    operations.ingest(settings, "small", T0 - 5 * STEP, T0, NOW)
    issue(settings, T0)
    found, said, _ = told(settings, T0)
    assert said.startswith(
        "published: hindcast r1 by optical_flow INSTEAD of the model (model tiny was trained for cadence"
    )
    assert found.cycles[0].model is None


def test_why_there_is_no_product(quick):
    operations.ingest(quick, "small", T0, T0 + STEP, NOW)
    remove_frames(quick, T0 + STEP)
    issue(quick, T0 + 9 * STEP)
    for time, expected in (
        (T0, "nobody asked for one; `nowcast backfill`"),
        (
            T0 + timedelta(minutes=3),
            "10-minute axis; those around it are 2024-06-01T02:00:00Z and 2024-06-01T02:10:00Z",
        ),
        (NOW + timedelta(hours=1), "lies in the future"),
        (T0 + 5 * STEP, "Its frame is missing: no ingest has seen a file for it"),
        (T0 + STEP, "LOST: the catalog has it, the archive does not"),
        (T0 + 9 * STEP, "hindcast skipped: no frame at the reference time 2024-06-01T03:30:00Z. Its frame is missing"),
    ):
        _, said, text = told(quick, time)
        assert said.startswith("no product") and expected in said and said in text
    assert "skipped: no frame at the reference time" in told(quick, T0 + 9 * STEP)[2].split("journal")[1]


def test_a_feed_that_is_live_tells_since_when_and_what_is_wrong_with_it(quick):
    catalog = Catalog(quick.catalog) if Store(quick.root) else None
    row = {
        "domain": "small",
        "since": times.seconds(T0),
        "settled_until": times.seconds(T0),
        "polled_at": NOW.timestamp(),
        "fault_at": NOW.timestamp(),
    }
    alert = {"domain": "small", "kind": "radar_silent", "subject": "home", "text": "no volume", "told": ""}
    with catalog.write() as connection:
        catalog.upsert(connection, tables.feeds, [row | {"fault": "the folder is gone"}])
        catalog.upsert(connection, tables.alerts, [alert | {"raised_at": T0.timestamp(), "ended_at": 0.0}])
    assert "before live forecasting of this domain began (2024-06-01T02:00:00Z)" in told(quick, T0 - STEP)[1]
    _, said, text = told(quick, T0 + STEP)
    assert "the feed had a fault: the folder is gone" in said and "radar_silent home: no volume" in text
    _, said, _ = told(quick, T0 + STEP, now=T0 + STEP + timedelta(minutes=5))
    assert said.startswith("no product yet: a live cycle waits for its frame until 2024-06-01T02:40:00Z")


def test_files_that_could_not_be_used_are_named_with_what_became_of_them(root, tmp_path, sample_data):
    folder = tmp_path / "feed"
    folder.mkdir()
    bad = "66_20201031_040000.prcp-c10.nc"
    (folder / bad).write_bytes((sample_data / "bom_66_prcp-c10_20201031" / bad).read_bytes()[:2000])
    domain = brisbane_domain(folder, model="last_frame")
    settings = settings_for(root, domain)
    store, catalog = operations.open_root(settings)
    time = times.parse_time("2020-10-31T04:00Z")
    ingest(domain, store, catalog, time, time, NOW)
    _, said, text = told(settings, time, "brisbane")
    assert said.endswith(f"of what came for it nothing could be used ({bad} QUARANTINED)")
    assert f"x  {bad}: QUARANTINED" in text and "truncated file" in text
    assert text.rstrip().splitlines()[-1].startswith("  2026-01-01T00:00:00Z quarantined")


def test_frames_of_several_radars_name_each_volume_also_the_one_that_came_too_late(tmp_path, store, catalog):
    domain, folder = feed(tmp_path / "in"), tmp_path / "in"
    put(folder, T0 - STEP, T0)
    (folder / f"west_{times.compact(T0)}.h5").write_bytes(b"no volume")
    take_in(domain, store, catalog, start=T0 - STEP, end=T0)
    found = explain(domain, store, catalog, T0, NOW)
    newest = found.frames[-1]
    assert newest.stored == "whole" and [one.radar for one in newest.volumes if not one.carried] == ["east"]
    assert [one.radar for one in newest.volumes if one.carried] in ([], ["west"])
    assert [(one.radar, one.state) for one in newest.others] == [("west", "quarantined")]
    text = "\n".join(lines(found, domain))
    assert "    <- east " in text and "    x  west west_20240601T020000Z.h5: QUARANTINED" in text


def test_as_json_it_has_the_same_facts(quick):
    backfill(quick)
    found, _, _ = told(quick, T0)
    data = json.loads(json.dumps(console.plain(found)))
    assert data["cycles"][0]["kind"] == "hindcast" and data["cycles"][0]["verified"] == "fully"
    assert len(data["frames"]) == 5 and all(frame["sha256"] for frame in data["frames"])

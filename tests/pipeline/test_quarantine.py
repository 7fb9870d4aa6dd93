"""Review of the quarantine: list, keep, drop, retry; what the catalog and the journal know of it afterwards."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import quarantine
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.ingest import forget_damaged, ingest
from pipeline.rebuild import rebuild
from pipeline.retention import housekeep
from pipeline.settings import Retention
from pipeline.sources.readers import READERS
from tests.conftest import NOW, brisbane_domain, settings_for

DAY = "20201031"
GOOD, BAD, WORSE = (f"66_{DAY}_0{n}0000.prcp-c10.nc" for n in (3, 4, 5))
START, END = datetime(2020, 10, 31, 2, tzinfo=UTC), datetime(2020, 10, 31, 6, tzinfo=UTC)


@pytest.fixture
def feed(tmp_path, sample_data):
    """One good file and two cut ones."""
    folder = tmp_path / "feed"
    folder.mkdir()
    for name, cut in ((GOOD, None), (BAD, 2000), (WORSE, 3000)):
        (folder / name).write_bytes((sample_data / "bom_66_prcp-c10_20201031" / name).read_bytes()[:cut])
    return folder


@pytest.fixture
def domain(feed, store, catalog):
    domain = brisbane_domain(feed)
    assert len(ingest(domain, store, catalog, START, END, NOW).quarantined) == 2
    return domain


def states(catalog) -> dict[str, str]:
    return {row["key"]: row["state"] for row in catalog.read(sa.select(tables.volumes))}


def test_what_is_in_quarantine_says_why_and_keeps_its_bytes(domain, store, catalog):
    found = quarantine.items(store, catalog, ["brisbane"])
    assert [one.name for one in found] == [f"brisbane/{BAD}", f"brisbane/{WORSE}"]
    one = quarantine.find(found, BAD)
    assert one.state == "quarantined" and not one.is_reviewed and one.bytes == 2000
    assert one.nominal_time == "2020-10-31T04:00:00Z" and BAD in one.reason
    assert one.history[0]["event"] == "quarantined"


def test_keep_and_drop_are_told_apart_and_survive_the_loss_of_the_catalog(domain, store, catalog):
    domains = {"brisbane": domain}
    quarantine.review("keep", [f"brisbane/{BAD}"], store, catalog, domains, NOW)
    (dropped,) = quarantine.review("drop", [WORSE], store, catalog, domains, NOW)
    assert not (store.root / dropped.files[0]).exists()
    wanted = {GOOD: "framed", BAD: "reviewed", WORSE: "dropped"}
    assert states(catalog) == wanted
    assert ingest(domain, store, catalog, START, END, NOW).unchanged == 3
    assert rebuild([domain], store, catalog).quarantined == 2
    assert states(catalog) == wanted
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.volumes))
    rebuild([domain], store, catalog)
    assert states(catalog) == {BAD: "reviewed", WORSE: "dropped"}
    assert [one.state for one in quarantine.items(store, catalog, ["brisbane"])] == ["reviewed", "dropped"]


def test_retry_hands_it_to_the_next_ingest(domain, store, catalog, monkeypatch, sample_data):
    quarantine.review("retry", [BAD], store, catalog, {"brisbane": domain}, NOW)
    assert states(catalog)[BAD] == "unreadable"
    assert len(ingest(domain, store, catalog, START, END, NOW).quarantined) == 1  # it is as bad as before
    assert states(catalog)[BAD] == "quarantined"
    quarantine.review("retry", [BAD], store, catalog, {"brisbane": domain}, NOW)
    with monkeypatch.context() as patch:  # a decoder that was mended
        reader, whole = READERS["bom_rainfields"], sample_data / "bom_66_prcp-c10_20201031"
        mended = dataclasses.replace(reader, read=lambda path, reading: reader.read(whole / path.name, reading))
        patch.setitem(READERS, "bom_rainfields", mended)
        assert ingest(domain, store, catalog, START, END, NOW).framed == 1
    assert states(catalog)[BAD] == "framed"
    left = quarantine.find(quarantine.items(store, catalog, ["brisbane"]), BAD)
    assert left.state == quarantine.TAKEN_IN and left.is_reviewed  # its bytes may go
    quarantine.review("drop", [BAD], store, catalog, {"brisbane": domain}, NOW)
    assert states(catalog)[BAD] == "framed" and BAD not in [
        one.key for one in quarantine.items(store, catalog, ["brisbane"])
    ]


def test_bad_keys_are_refused_and_then_nothing_is_done(domain, store, catalog, feed):
    domains = {"brisbane": domain}
    for key in ("nothing", "../../etc/passwd", GOOD, "other/" + BAD):
        with pytest.raises(SettingsError, match=r"no such thing is in quarantine.*brisbane/66_"):
            quarantine.review("drop", [BAD, key], store, catalog, domains, NOW)
    assert states(catalog)[BAD] == "quarantined"
    (feed / BAD).unlink()
    with pytest.raises(SettingsError, match=r"has left the source of brisbane.*copy quarantine/brisbane/"):
        quarantine.review("retry", [WORSE, BAD], store, catalog, domains, NOW)
    (feed / WORSE).write_bytes(b"something else")
    with pytest.raises(SettingsError, match="another file of this name now"):
        quarantine.review("retry", [WORSE], store, catalog, domains, NOW)
    assert states(catalog) == {GOOD: "framed", BAD: "quarantined", WORSE: "quarantined"}


def test_retention_removes_only_what_somebody_has_looked_at(domain, store, catalog, root):
    archive = Archive(store, domain)
    (time,) = archive.times()
    forget_damaged(archive, catalog, domain, time)  # the archive's own quarantine
    settings = settings_for(root, domain).model_copy(update={"retention": Retention(quarantine_days=1)})
    later = datetime.now(UTC) + timedelta(days=2)
    done = housekeep(settings, store, catalog, later)
    assert done.gone == []
    assert next(count for (part, _, reason), (count, _) in done.stays.items() if "nobody has" in reason) == 3
    names = [one.name for one in quarantine.items(store, catalog, ["brisbane"])]
    quarantine.review("keep", [name for name in names if WORSE not in name], store, catalog, {"brisbane": domain}, NOW)
    assert len(housekeep(settings, store, catalog, later).gone) == 2
    assert states(catalog) == {GOOD: "unreadable", BAD: "dropped", WORSE: "quarantined"}
    assert len(list((root / "quarantine" / "brisbane").iterdir())) == 1


def test_a_name_in_two_domains_needs_the_domain(domain, store, catalog, feed):
    other = brisbane_domain(feed, name="other")
    ingest(other, store, catalog, START, END, NOW)
    found = quarantine.items(store, catalog, ["brisbane", "other"])
    with pytest.raises(SettingsError, match="brisbane, other; write DOMAIN/KEY"):
        quarantine.find(found, BAD)
    assert quarantine.find(found, f"other/{BAD}").domain == "other"

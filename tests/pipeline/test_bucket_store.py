"""A store in a bucket: the same content as in a folder, nothing half done, and machines that see each other."""

import json
import os
import random
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import operations, packing, publish, settings, times
from pipeline.bucket_store import IN_USE_S, BucketStore, _keeps_conditions, _mark_of
from pipeline.catalog import Catalog
from pipeline.compaction import compact
from pipeline.errors import DamagedFrame, SettingsError, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.objects import Bucket
from pipeline.rebuild import rebuild
from pipeline.source_settings import S3Access
from pipeline.storage import open_store
from pipeline.warnings.watch import watch
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline import test_compaction as packing_of_days
from tests.pipeline.cycles import STEP, T0, backfill, digests, files_below, issue, write_model
from tests.s3_server import dropped, refusal

BROKEN = refusal("InternalError", 500)


@pytest.fixture
def bucket(new_bucket):
    return replace(new_bucket(), prefix="some/where/")


@pytest.fixture
def domain():
    return synthetic_domain(model="last_frame", points={"here": (5.0, 51.0)})


@pytest.fixture
def in_bucket(bucket, tmp_path, domain):
    """Makes settings of a machine of its own, whose store is the bucket."""

    def make(name="here", **changes):
        more = {"store": f"s3://{bucket.bucket}/{bucket.prefix}", "s3": bucket.access, **changes}
        return settings_for(tmp_path / name, domain).model_copy(update=more)

    return make


@pytest.fixture
def stores(bucket, tmp_path):
    """The stores of two machines."""
    return [BucketStore(tmp_path / name, bucket, 64) for name in ("one", "other")]


def write(store, name, content):
    path = store.root / name
    with store.publish(path) as temporary:
        temporary.write_bytes(content)
    return path


def contents(settings) -> dict[str, str]:
    """Content digest of every product, companion and file of sums, as the store has them."""
    store = open_store(settings)
    found = store.glob(store.root / "products", "**/*.nc") + store.glob(store.root / "verification", "**/*.nc")
    return {store.relative(path): packing.read_digest(store.get(path)) for path in found}


def names(settings, *parts) -> set[str]:
    store = open_store(settings)
    return {store.relative(path) for part in parts for path in store.glob(store.root / part, "**/*")}


def test_the_whole_chain_gives_what_it_gives_in_a_folder(in_bucket, domain, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.verification.report._figures", lambda *arguments: [])
    monkeypatch.setattr("pipeline.verification.figures.case_maps", lambda *arguments: "")
    folder, machine = settings_for(tmp_path / "folder", domain), in_bucket()
    for each in (folder, machine):
        report = backfill(each, T0, T0 + STEP)
        assert report.cycles == {"published": 2} and report.verify.scored == 2 and not report.problems
        operations.report(each, "small", None, None, None, NOW)
        operations.view(each, "small", None, None)
    assert contents(machine) == contents(folder) and len(contents(folder)) == 5
    for part in ("archive", "products", "verification", "reports", "view"):
        assert names(machine, part) == names(folder, part) != set()
    bucket = open_store(machine).bucket
    page = bucket._client.head_object(Bucket=bucket.bucket, Key=f"{bucket.prefix}view/small/index.html")
    assert page["ContentType"] == "text/html"
    # a machine that was lost: nothing is left but the bucket
    known = digests(machine)
    shutil.rmtree(machine.root)
    store, catalog = operations.open_root(machine)
    with closing(catalog):
        found = rebuild([domain], store, catalog)
    assert (found.frames, found.forecasts, found.scores, found.damaged, found.unknown) == (10, 2, 1, [], [])
    assert digests(machine) == known
    assert backfill(machine, T0, T0 + STEP).cycles == {"unchanged": 2}


def test_an_upload_that_fails_leaves_no_row_and_the_next_run_completes(in_bucket, proxy):
    machine = in_bucket()
    assert operations.ingest(machine, "small", T0 - 4 * STEP, T0, NOW).ingest.framed == 5
    faulty = machine.model_copy(update={"s3": S3Access(endpoint_url=proxy.endpoint, timeout_s=2, retries=0)})
    open_store(faulty)
    for spared in range(5):  # the files beside the product, the product, the hint
        left = [spared]

        def choose(method, path, left=left):
            if method != "PUT":
                return "pass"
            left[0] -= 1
            return BROKEN if left[0] < 0 else "pass"

        proxy.choose = choose
        (made,) = issue(faulty, T0, kind="issued")
        assert made.state == "failed" and isinstance(made.error, StoreUnavailable) and "500" in made.reason
        assert bool(digests(machine)) == (spared == 4)  # recorded when all four are there
        assert not any(path.is_file() for path in (machine.root / "tmp").rglob("*"))
    proxy.choose = None
    (done,) = issue(faulty, T0, kind="issued")
    assert done.state == "unchanged"
    store = open_store(machine)
    assert json.loads(store.get(store.latest("small")).read_text())["path"] == done.path
    assert packing.read_digest(store.get(store.root / done.path)) == done.content_digest


def test_a_frame_that_cannot_be_written_has_no_row(in_bucket, proxy):
    machine = in_bucket(s3=S3Access(endpoint_url=proxy.endpoint, timeout_s=2, retries=0))
    open_store(machine)
    proxy.choose = lambda method, path: BROKEN if method == "PUT" and "/frames/c/" in path else "pass"
    with pytest.raises(StoreUnavailable, match=r"s3://.*frames/c/12"):
        operations.ingest(machine, "small", T0, T0, NOW)
    with closing(Catalog(machine.catalog)) as catalog:
        assert catalog.read(sa.select(tables.frames)) == catalog.read(sa.select(tables.volumes)) == []
    proxy.choose = None
    assert operations.ingest(machine, "small", T0, T0, NOW).ingest.framed == 1


def test_a_bucket_that_fails_is_not_a_damaged_frame(in_bucket, proxy, domain):
    machine = in_bucket(s3=S3Access(endpoint_url=proxy.endpoint, timeout_s=2, retries=0))
    operations.ingest(machine, "small", T0, T0, NOW)
    store = open_store(machine)
    for fault in (BROKEN, dropped, refusal("AccessDenied", 403)):
        archive = Archive(store, domain)
        assert archive.read(T0) is not None
        proxy.then = fault
        with pytest.raises(StoreUnavailable):
            archive.read(T0)
        with pytest.raises(StoreUnavailable):
            Archive(store, domain).read(T0)
        proxy.then = "pass"
    store.bucket.put(b"no frame", "archive/small/2024/06/01.zarr/frames/c/12/0/0/0")
    with pytest.raises(DamagedFrame):
        archive.read(T0)
    archive.set_aside(T0)
    assert archive.read(T0) is None and archive.times() == []
    archive.set_aside(T0)  # as when another process was first
    assert [store.get(path).read_bytes() for path in store.glob(store.root / "quarantine", "small/*")] == [b"no frame"]


def test_the_chain_completes_over_a_bad_connection(in_bucket, proxy, monkeypatch):
    draw = random.Random(3)
    failed = []

    def choose(method, path):
        fault = draw.choice((BROKEN, refusal("SlowDown", 503), dropped)) if draw.random() < 0.05 else "pass"
        failed.append(fault != "pass")
        return fault

    proxy.choose = choose
    machine = in_bucket(s3=S3Access(endpoint_url=proxy.endpoint, timeout_s=2, retries=6))
    report = backfill(machine)
    assert report.cycles == {"published": 1} and report.verify.scored == 1 and not report.problems
    assert sum(failed) >= 2
    proxy.choose = None
    assert backfill(machine).cycles == {"unchanged": 1}


def test_machines_see_what_the_other_wrote(stores, domain):
    one, other = stores
    path, same = write(one, "products/a.nc", b"first"), other.root / "products/a.nc"
    assert other.get(same) == same and same.read_bytes() == b"first" and other.size(same) == 5
    write(one, "products/a.nc", b"second")
    assert same.read_bytes() == b"first" and other.get(same).read_bytes() == b"second"
    assert other.glob(other.root / "products", "*.nc") == [same] and other.glob(other.root, "*.nc") == []
    assert other.glob(other.root, "**/a.nc") == [same] and other.folders(other.root) == ["products"]
    other.remove(same)
    assert not one.has(path)
    with pytest.raises(FileNotFoundError):
        one.get(path)
    with pytest.raises(FileNotFoundError):
        one.move(path, one.root / "b")


def test_machines_see_the_warnings_of_the_other(stores, tmp_path):
    rule = {"place": "home", "amount_mm": 10, "minutes": 30}
    domain = synthetic_domain(points={"home": (5.0, 51.0)}, warnings=[rule])
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    told = []
    for n, (store, amount) in enumerate(zip([*stores, *stores], (12, 12, 3, 3), strict=True)):
        time = times.iso(T0 + n * STEP)
        said = {"places": [{"name": "home", "amount_mm": {"30": amount}}], "reference_time": time, "issue_time": time}
        document = write(store, f"products/{n}.places.json", json.dumps(said).encode())
        told += [watch(domain, each, each.root / store.relative(document)).warnings for each in stores]
    catalog.close()
    assert [len(one) for one in told] == [1, 0, 0, 0, 0, 0, 1, 0]
    records = [list(store.read_lines(store.warnings("small").with_suffix(".jsonl"))) for store in stores]
    assert records[0] == records[1] and [entry["event"] for entry in records[0]] == ["raised", "cleared"]


def test_latest_never_goes_back(stores, domain, monkeypatch):
    def row(n):
        time = times.seconds(T0 + n * STEP)
        return {"kind": "issued", "reference_time": time, "revision": 1, "path": str(n), "content_digest": ""}

    def latest():
        return json.loads(stores[0].get(stores[0].latest("small")).read_text())["path"]

    publish.point_latest(stores[0], domain, row(1))
    # the other machine moves it on while the first is between reading and writing
    put = Bucket.put

    def overtaken(bucket, *arguments, **conditions):
        monkeypatch.setattr(Bucket, "put", put)
        publish.point_latest(stores[1], domain, row(3))
        return put(bucket, *arguments, **conditions)

    for n in (2, 4):
        monkeypatch.setattr(Bucket, "put", overtaken)
        publish.point_latest(stores[0], domain, row(n))
        assert latest() == ("3" if n == 2 else "4")
    # and both at once
    moves = [row(n) for n in range(5, 25)]
    random.Random(1).shuffle(moves)
    threads = [
        threading.Thread(target=lambda store=store, part=part: [publish.point_latest(store, domain, m) for m in part])
        for store, part in zip(stores, (moves[::2], moves[1::2]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert latest() == "24"


def test_a_server_that_ignores_conditions_is_for_one_machine(in_bucket, proxy, caplog):
    proxy.then = "unconditional"
    _keeps_conditions.cache_clear()
    machine = in_bucket(s3=S3Access(endpoint_url=proxy.endpoint, timeout_s=2, retries=0))
    with pytest.raises(StoreUnavailable, match=r"s3://.*ignores the conditions.*PostgreSQL"):
        open_store(machine.model_copy(update={"catalog": "postgresql+psycopg://somebody@127.0.0.1/nowcast"}))
    open_store(machine)
    open_store(machine)
    assert [record.message for record in caplog.records if "one machine" in record.message] != []
    proxy.then = "pass"
    open_store(in_bucket("other", catalog="postgresql+psycopg://somebody@127.0.0.1/nowcast"))  # one that keeps them


def test_a_copy_that_is_not_what_was_fetched_is_fetched_again(stores):
    one, other = stores
    path = write(one, "products/a.nc", b"content")
    path.write_bytes(b"CONTENT")
    assert one.get(path).read_bytes() == b"content"
    # two processes of a machine at once: the file of one, the mark of the other
    older = _mark_of(path).read_text()
    write(other, "products/a.nc", b"newest.")
    one.get(path)
    newest = _mark_of(path).read_text()
    path.unlink()
    path.write_bytes(b"content")
    for mark in (older, newest, "", "damaged"):
        _mark_of(path).write_text(mark)
        assert one.get(path).read_bytes() == b"newest."


def test_two_processes_that_fetch_at_once_keep_no_wrong_mark(stores, monkeypatch):
    one, other = stores
    path = write(one, "products/a.nc", b"old")
    write(other, "products/a.nc", b"mid")
    replaced, replace = [], os.replace

    def overtaken(source, target):
        replace(source, target)
        if not replaced:  # another process of this machine fetches a newer version meanwhile
            replaced.append(target)
            write(other, "products/a.nc", b"new")
            one.get(path)

    monkeypatch.setattr(os, "replace", overtaken)
    one.get(path)
    assert replaced == [path]
    write(other, "products/a.nc", b"mid")
    assert one.get(path).read_bytes() == b"mid"


def test_keys_that_lead_out_of_the_cache_are_left_alone(stores, tmp_path, monkeypatch):
    one, other = stores
    write(one, "models/tiny/card.json", b"{}")
    listed = Bucket.list

    def with_strange_ones(bucket, *arguments):
        for info in listed(bucket, *arguments):
            yield from (replace(info, key=key) for key in ("models/tiny/../../../evil", "models/tiny/", "models//tiny"))
            yield info

    monkeypatch.setattr(Bucket, "list", with_strange_ones)
    assert files_below(other.models("tiny")) == {"tiny/card.json", "tiny/.card.json.etag"}
    assert other.glob(other.root, "**/*") == [other.root / "format.json", other.root / "models/tiny/card.json"]
    assert not list(tmp_path.rglob("evil"))


def test_a_day_is_packed_in_the_bucket(stores, domain, tmp_path):
    one, other = stores
    seeds = {slot: slot + 1 for slot in packing_of_days.SLOTS}
    with closing(Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")) as catalog:
        packing_of_days.write(one, catalog, seeds)
        done = compact(domain, one, catalog, NOW)
    assert (done.days, done.objects_after, done.problems) == (1, 1, [])
    assert packing_of_days.held(other) == packing_of_days.wanted(seeds)
    (file,) = other.listed(other.archive("small"), "**/c/**/0")
    assert file.path.parts[-6:-4] == ("packed", "c") and abs(file.written_at - time.time()) < 300
    archive = Archive(other, domain)
    assert archive.set_aside(packing_of_days.DAY) == [packing_of_days.DAY]
    assert packing_of_days.held(one).keys() == seeds.keys() - {0}
    archive.objects(packing_of_days.DAY).remove_all()
    assert archive.times() == [] == one.folders(one.archive("small"))


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(bucket, tmp_path):
    store = BucketStore(tmp_path / "root", bucket, 1)
    kept = write(store, "clutter/small/r.npz", bytes(300_000))
    paths = [write(store, f"products/{n}.nc", bytes([n]) * 300_000) for n in range(4)]
    assert all(path.is_file() for path in paths)  # just used: perhaps about to be opened
    for age, path in enumerate((kept, paths[0], paths[2], paths[1], paths[3])):
        os.utime(_mark_of(path), (time.time() - 2 * IN_USE_S + age,) * 2)
    store.get(paths[0])
    write(store, "products/4.nc", bytes(300_000))
    assert [path.is_file() for path in (kept, *paths)] == [True, True, False, False, False]
    assert store.get(paths[1]).read_bytes() == bytes([1]) * 300_000


def test_the_journal_of_all_machines_in_order(stores, bucket):
    for n, store in enumerate([*stores, *stores]):
        store.append_journal(NOW + n * timedelta(hours=9), {"n": n})
    stores[0].append_journal(NOW, {"n": 0})  # told again
    bucket.put(b'{"n": -1}\n{"cut of', f"journal/{NOW:%Y-%m-%d}.jsonl")  # of the folder that the bucket was before
    assert [entry["n"] for entry in stores[1].read_journal()] == [-1, 0, 1, 2, 3]
    tomorrow = f"{NOW + timedelta(days=1):%Y-%m-%d}"
    assert [entry["n"] for entry in stores[1].read_journal(tomorrow)] == [n for n in range(4) if 9 * n >= 24]


def test_a_model_trained_on_one_machine_is_found_by_the_other(stores):
    one, other = stores
    write_model(one.models() / "tiny")
    one.send(one.models() / "tiny")
    assert not (other.models("another") / "tiny").exists()
    assert files_below(other.models("tiny")) >= {"tiny/card.json", "tiny/weights.safetensors"}
    one.remove(one.models() / "tiny" / "card.json")
    assert not (other.models("tiny") / "tiny" / "card.json").exists()


def test_a_store_of_another_format_or_without_a_bucket_is_refused(bucket, tmp_path, in_bucket):
    bucket.put(b'{"format_version": 99}', "format.json")
    with pytest.raises(StoreUnavailable, match=r"s3://.*format 99"):
        BucketStore(tmp_path / "root", bucket, 64)
    with pytest.raises(StoreUnavailable, match="no such bucket"):
        open_store(in_bucket(store="s3://nobody-has-this/one"))
    with pytest.raises(SettingsError, match=r"store = .*s3://bucket"):
        settings.load(options={"store": "s3:/one"}, environment={})
    with pytest.raises(SettingsError, match="store = 's3://one'"):
        settings.load(options={"root": "s3://one"}, environment={})

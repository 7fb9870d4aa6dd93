"""Composites and volumes from a bucket: the same frames as from a folder, and what can go wrong on the way."""

import json
import os
import tarfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.errors import SettingsError, StoreUnavailable
from pipeline.ingest import ingest
from pipeline.objects import Bucket
from pipeline.prepare import prepare
from pipeline.s3_client import client
from pipeline.settings import load
from pipeline.source_settings import S3Access
from pipeline.sources import VolumeRef, open_polar_source, open_source
from pipeline.sources.bucket import BucketFiles, newest_first
from pipeline.sources.volumes import VolumeFiles
from pipeline.storage import Store
from tests.conftest import NOW, PROJECT, synthetic_domain
from tests.pipeline.test_ingest import composites
from tests.pipeline.test_ingest import put as put_composite
from tests.pipeline.test_ingest_volumes import GRID, NETWORK, RADARS, STEP, feed, frame_rows, put, states
from tests.s3_server import refusal, stalled

MIDNIGHT = datetime(2024, 6, 2, tzinfo=UTC)
DAYS = "%Y/%m/%d/{radar}/"


def in_bucket(bucket: Bucket, access: S3Access | None = None, **changes):
    """The domain of ``feed`` with its volumes in a bucket."""
    source = {
        "kind": "volumes",
        "uri": f"s3://{bucket.bucket}/{bucket.prefix}",
        "s3": (access or bucket.access).model_dump(),
        "layout": DAYS,
        "radars": list(RADARS),
        "pattern": r"(?P<radar>[a-z]+)_(?P<time>\d{8}T\d{6}Z)\.h5",
        "time_format": "%Y%m%dT%H%M%SZ",
    }
    return synthetic_domain("net", grid=GRID, source={**source, **changes})


def upload(bucket: Bucket, folder: Path):
    for path in sorted(folder.iterdir()):
        radar, stamp = path.stem.split("_")
        bucket.put(path, f"{stamp[:4]}/{stamp[4:6]}/{stamp[6:8]}/{radar}/{path.name}")


def take_in(domain, store, catalog, start=MIDNIGHT - STEP, end=MIDNIGHT, now=NOW):
    return ingest(domain, store, catalog, start, end, now)


def checksums(catalog) -> dict[datetime, str]:
    return {time: row["sha256"] for time, row in frame_rows(catalog).items()}


@pytest.fixture
def other(tmp_path):
    """Store and catalog of a second root, and the frames that an ingest made there."""
    store = Store(tmp_path / "other")
    catalog = Catalog(f"sqlite:///{store.root / 'catalog.sqlite'}")

    def frames_of(domain, start=MIDNIGHT - STEP, end=MIDNIGHT, now=NOW):
        ingest(domain, store, catalog, start, end, now)
        return checksums(catalog)

    yield frames_of
    catalog.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Volumes of two radars before and at midnight."""
    folder = tmp_path_factory.mktemp("volumes")
    put(folder, MIDNIGHT - STEP, MIDNIGHT)
    return folder


@pytest.fixture
def volumes(folder, new_bucket):
    """The folder, and a bucket with the same."""
    bucket = replace(new_bucket(), prefix="a/b/")
    upload(bucket, folder)
    return folder, bucket


def behind(bucket: Bucket, proxy) -> S3Access:
    return bucket.access.model_copy(update={"endpoint_url": proxy.endpoint, "timeout_s": 2.0})


def test_frames_from_a_bucket_are_those_from_a_folder_also_over_midnight(volumes, store, catalog, other, proxy):
    folder, bucket = volumes
    domain = in_bucket(bucket, behind(bucket, proxy))
    result = take_in(domain, store, catalog)
    assert (result.framed, result.quarantined) == (2, [])
    assert checksums(catalog) == other(feed(folder)) and len(checksums(catalog)) == 2
    assert f"2024/06/01/west/west_{times.compact(MIDNIGHT - STEP)}.h5" in states(catalog)
    proxy.seen.clear()
    assert take_in(domain, store, catalog).unchanged == 4
    assert len(proxy.seen) == 4 and all("list-type=2" in path for _, path in proxy.seen)  # two radars, two days
    assert not [path for path in store.temporary.iterdir() if path.is_dir()]


def test_composites_from_a_bucket(tmp_path, store, catalog, other, new_bucket):
    bucket = new_bucket()
    local = composites(tmp_path / "in")
    for instant in (MIDNIGHT - STEP, MIDNIGHT):
        path = put_composite(tmp_path / "in", instant)
        bucket.put(path, f"rain/{instant:%Y%m%d}/{path.name}")
    bad = tmp_path / "in" / f"comp_{times.compact(MIDNIGHT - 2 * STEP)}.h5"
    bad.write_bytes(b"no composite")
    bucket.put(bad, f"rain/20240601/{bad.name}")
    source = {"kind": "gridded", "reader": "odim_comp", "uri": f"s3://{bucket.bucket}/rain", "layout": "%Y%m%d/"}
    domain = synthetic_domain("odim", grid={"native": True}, source={**source, "s3": bucket.access.model_dump()})
    result = take_in(domain, store, catalog, MIDNIGHT - 2 * STEP)
    assert result.framed == 2 and [key for key, _ in result.quarantined] == [f"20240601/{bad.name}"]
    (kept,) = (store.root / "quarantine/odim").iterdir()
    assert kept.read_bytes() == b"no composite"
    assert checksums(catalog) == other(local)
    assert take_in(domain, store, catalog, MIDNIGHT - 2 * STEP).unchanged == 3


def example(name: str, endpoint: str):
    """A domain of ``infra/domains/feeds.toml``, at another endpoint."""
    s3 = f"domains.{name}.source.s3"
    options = {f"{s3}.endpoint_url": endpoint, f"{s3}.timeout_s": "5", f"{s3}.anonymous": "false"}
    return load(PROJECT / "infra/domains/feeds.toml", options, {}).domain(name)


def named_bucket(bucket: Bucket, name: str) -> Bucket:
    client(bucket.access).create_bucket(Bucket=name)
    return Bucket(bucket.access, name)


def folder_of(domain, folder: Path):
    """The same domain with its files in a folder."""
    source = domain.source.model_copy(update={"uri": str(folder), "s3": None, "layout": ""})
    return domain.model_copy(update={"source": source})


def test_the_nexrad_archive(sample_data, s3_server, new_bucket, store, catalog, other):
    path = sample_data / "volumes/nexrad_level2/KLBB20160601_150025_V06"
    archive = named_bucket(new_bucket(), "unidata-nexrad-level2")
    archive.put(path, f"2016/06/01/KLBB/{path.name}")
    archive.put(b"side file", f"2016/06/01/KLBB/{path.name}_MDM")
    archive.put(b"of another", "2016/06/01/KLOT/KLOT20160601_150025_V06")
    domain, start = example("lubbock", s3_server), datetime(2016, 6, 1, 15, tzinfo=UTC)
    result = take_in(domain, store, catalog, start, start + STEP)
    assert (result.framed, result.quarantined) == (1, [])
    assert list(states(catalog)) == [f"2016/06/01/KLBB/{path.name}"]
    (row,) = catalog.read(sa.select(tables.volumes))
    assert row["radar"] == "KLBB" and abs(row["arrived_at"] - time.time()) < 600  # when it came to the bucket
    assert checksums(catalog) == other(folder_of(domain, path.parent), start, start + STEP)


def test_nexrad_in_pieces_is_taken_when_its_end_is_there(sample_data, s3_server, new_bucket, tmp_path):
    live = named_bucket(new_bucket(), "unidata-nexrad-level2-chunks")
    folder = tmp_path / "chunks"
    folder.mkdir()
    with tarfile.open(sample_data / "volumes/nexrad_level2/nexrad_level2_chunks_KLOT.tar.gz") as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name):
            path = folder / member.name.rpartition("/")[2]
            path.write_bytes(tar.extractfile(member).read())
            if "-030-" not in path.name and "-055-" not in path.name:
                live.put(path, f"KLOT/17/{path.name}")
    live.put(folder / "20260328-201457-001-S", "KLOT/16/20260328-200800-001-S")
    domain, start = example("chicago", s3_server), datetime(2026, 3, 28, 20, 10, tzinfo=UTC)

    def listed():
        return open_polar_source(domain).list(start, start + STEP)

    assert [ref.open_until is None for ref in listed()] == [False]
    live.put(folder / "20260328-201457-055-E", "KLOT/17/20260328-201457-055-E")
    assert [ref.open_until is None for ref in listed()] == [False]  # the 30th may be on its way
    live.put(folder / "20260328-201457-030-I", "KLOT/17/20260328-201457-030-I")
    (ref,) = listed()
    assert ref.open_until is None and (ref.radar, len(ref.members)) == ("KLOT", 55)
    (tmp_path / "scratch").mkdir()
    copies = open_polar_source(domain).files(ref, tmp_path / "scratch")
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in sorted(folder.iterdir())]
    (local,) = open_polar_source(folder_of(domain, folder)).list(start, start + STEP)
    assert (local.key, local.radar, local.open_until) == (ref.key, "KLOT", None)


def test_mrms_names_are_known(s3_server, new_bucket):
    bucket = replace(named_bucket(new_bucket(), "noaa-mrms-pds"), prefix="CONUS/PrecipRate_00.00/")
    for day, clock in (("20190609", "235836"), ("20190610", "000036"), ("20190610", "000236")):
        bucket.put(b"x", f"{day}/MRMS_PrecipRate_00.00_{day}-{clock}.grib2.gz")
    start = datetime(2019, 6, 10, tzinfo=UTC)
    refs = open_source(example("conus_live", s3_server)).list(
        start - timedelta(minutes=2), start + timedelta(minutes=2)
    )
    assert [ref.nominal_time.strftime("%H%M%S") for ref in refs] == ["235836", "000036"]


def test_belgian_radars_by_the_layout_alone(sample_data, new_bucket, store, catalog, other, tmp_path):
    bucket, folder = new_bucket(), tmp_path / "in"
    folder.mkdir()
    for radar in ("behel", "bejab", "bewid"):
        content = (sample_data / f"volumes/odim_h5/{radar}.pvol.hdf").read_bytes()
        bucket.put(content, f"2019/06/06/BE/{radar}/PVOL/{radar}@20190606T0000@0@DBZH.h5")
        (folder / f"{radar}@20190606T0000@0@DBZH.h5").write_bytes(content)
    grid = {**GRID, "crs": "EPSG:3812", "centre": (4.7, 50.7), "shape": (128, 128), "spacing_m": 4000.0}
    domain = in_bucket(
        bucket, layout="%Y/%m/%d/BE/{radar}/PVOL/", radars=["behel", "bejab", "bewid"],
        pattern=r"\D*(?P<time>\d{8}T\d{4})\D.*\.h5", time_format="%Y%m%dT%H%M",
    ).model_copy(update={"grid": type(NETWORK.grid).model_validate(grid)})  # fmt: skip
    whole = in_bucket(
        bucket, layout="%Y/%m/%d/", radars=["behel", "bejab"], time_format="%Y%m%dT%H%M",
        pattern=r"[A-Z]{2}/(?P<radar>[a-z]{5})/PVOL/[^/]*(?P<time>\d{8}T\d{4})[^/]*",
    )  # fmt: skip
    start = datetime(2019, 6, 6, tzinfo=UTC)
    assert [ref.radar for ref in open_polar_source(whole).list(start, start)] == ["behel", "bejab"]
    assert take_in(domain, store, catalog, start, start + STEP).quarantined == []
    assert {i["radar"] for i in json.loads(frame_rows(catalog)[start + STEP]["inputs"])} == {"behel", "bejab", "bewid"}
    named = domain.source.model_copy(update={"pattern": r"(?P<radar>\w+)@(?P<time>\d{8}T\d{4})@.*"})
    assert checksums(catalog) == other(
        folder_of(domain.model_copy(update={"source": named}), folder), start, start + STEP
    )


def test_numbered_folders_end_before_the_widest_gap():
    assert newest_first(["1", "2", "3", "998", "999", "x", "0", "1000"]) == [3, 2, 1, 999, 998]
    assert newest_first(str(n) for n in range(400, 700)) == list(range(699, 399, -1))
    assert newest_first(["7"]) == [7] and newest_first([]) == []


def test_of_numbered_folders_only_the_newest_are_listed(new_bucket, proxy):
    bucket = new_bucket()
    for number in (*range(980, 1000), *range(1, 21)):
        bucket.put(b"x", f"KLOT/{number}/20260328-201457-001-S")
    config = example("chicago", proxy.endpoint).source
    files = BucketFiles(config.model_copy(update={"uri": f"s3://{bucket.bucket}"}))
    here = datetime.now(UTC)
    assert len(list(files.list(here - timedelta(hours=1), here))) == 40
    proxy.seen.clear()
    found = list(files.list(here + timedelta(hours=1), here + timedelta(hours=1)))
    assert {file.key.split("/")[1] for file in found} == {"20", "19", "18"} and len(proxy.seen) == 4


def test_an_object_that_was_cut_is_tried_again(volumes, store, catalog, proxy, monkeypatch):
    _, bucket = volumes
    domain = in_bucket(bucket, behind(bucket, proxy))
    (bad,) = [o.key for o in bucket.list("2024/06/02/east/")]
    get = Bucket.get

    def cut_short(self, key, path, max_bytes):
        proxy.then = "cut" if key == bad else "pass"
        return get(self, key, path, max_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "get", cut_short)
        result = take_in(domain, store, catalog)
    ((key, reason),) = result.quarantined
    assert key == bad and "broke off" in reason and result.framed == 2
    assert states(catalog)[bad] == "unreadable" and not (store.root / "quarantine").exists()
    proxy.then = "pass"
    assert take_in(domain, store, catalog).framed == 1 and len(json.loads(frame_rows(catalog)[MIDNIGHT]["inputs"])) == 2


def test_an_object_that_was_replaced_or_removed_since_it_was_listed_is_unreadable(volumes, tmp_path):
    _, bucket = volumes
    domain = in_bucket(bucket)
    first, second = open_polar_source(domain).list(MIDNIGHT, MIDNIGHT)
    bucket.put(b"new", first.key)
    bucket.delete(second.key)
    for ref, said in ((first, "replaced since"), (second, "no such object")):
        made = prepare(domain, ref, NOW, tmp_path)
        assert made.state == "unreadable" and said in made.reason and ref.key in made.reason
    assert open_polar_source(domain).files(second, tmp_path) == []  # the quarantine keeps what there is


def test_a_damaged_object_is_quarantined_with_its_bytes(volumes, store, catalog):
    _, bucket = volumes
    (bad,) = [o.key for o in bucket.list("2024/06/02/east/")]
    bucket.put(b"\x89HDF half", bad)
    assert [key for key, _ in take_in(in_bucket(bucket), store, catalog).quarantined] == [bad]
    (kept,) = (store.root / "quarantine/net").iterdir()
    assert kept.read_bytes() == b"\x89HDF half" and kept.name.endswith(bad.rpartition("/")[2])
    assert take_in(in_bucket(bucket), store, catalog).unchanged == 4


def test_keys_that_no_source_has_and_unknown_radars_are_left_alone(volumes, caplog):
    _, bucket = volumes
    name = f"west_{times.compact(MIDNIGHT)}.h5"
    for key in (
        f"../{name}",
        f"..{name}",
        f"a\tb/{name}",
        f"{'x' * 450}{name}",
        "east_20240602T000000Z.h5/",
        name + "_MDM",
    ):
        bucket.put(b"x", f"2024/06/02/west/{key}")
    bucket.put(b"x", f"2024/06/02/west/{name.replace('west', 'north')}")
    refs = open_polar_source(in_bucket(bucket)).list(MIDNIGHT, MIDNIGHT)
    assert [ref.key for ref in refs] == [f"2024/06/02/{r}/{r}_{times.compact(MIDNIGHT)}.h5" for r in ("east", "west")]
    assert "3 keys" in caplog.text and "not in radars: north" in caplog.text and "\t" not in caplog.text


def test_too_large_objects_are_not_fetched(volumes, store, catalog, proxy):
    _, bucket = volumes
    domain = in_bucket(bucket, behind(bucket, proxy), max_file_mb=0.01)
    result = take_in(domain, store, catalog)
    assert len(result.quarantined) == 4 and "max_file_mb" in result.quarantined[0][1]
    assert all("list-type=2" in path for _, path in proxy.seen)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (refusal("InvalidAccessKeyId", 403), "does not know the access key"),
        (refusal("RequestTimeTooSkewed", 403), "clock of this machine is off"),
        (stalled(0.8), "did not answer within 0.5 s"),
        ("missing", "no such bucket"),
        ("nobody", "no connection"),
    ],
    ids=["credentials", "clock", "stalled", "bucket", "endpoint"],
)
def test_a_bucket_that_cannot_be_read_stops_the_ingest_and_nothing_is_recorded(
    new_bucket, store, catalog, proxy, fault, said
):
    bucket = new_bucket()
    access = behind(bucket, proxy)
    if fault == "missing":
        bucket = replace(bucket, bucket="not-there")
    elif fault == "nobody":
        access = access.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    else:
        proxy.then = fault
        access = access.model_copy(update={"timeout_s": 0.5})
    with pytest.raises(StoreUnavailable, match=rf"s3://{bucket.bucket}/.*{said}"):
        take_in(in_bucket(bucket, access), store, catalog)
    assert states(catalog) == {}


SETTINGS = r"""
[domains.d]
cadence_minutes = 5
grid = { crs = "EPSG:3035", shape = [64, 64], spacing_m = 2000, centre = [5.0, 51.0] }
[domains.d.source]
kind = "volumes"
uri = "s3://radar/feed"
pattern = '(?P<time>\d{14})'
layout = "%Y/"
s3 = { retries = 2 }
"""


def test_a_settings_file_names_a_bucket(tmp_path):
    (tmp_path / "nowcast.toml").write_text(SETTINGS)
    source = load(tmp_path, None, {}).domain("d").source
    assert (source.uri, source.s3.retries, source.layout) == ("s3://radar/feed", 2, "%Y/")


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("%Y/", "%Y/%M/", "%H"),
        ("%Y/", "{radar}/", "needs radars"),
        ("%Y/", "../%Y/", "layout"),
        ("(?P<time>", "(", "group 'time'"),
        ('"s3://radar/feed"', '"feed"', "layout are for"),
        ("s3://radar", "s3://r/../", "expected s3://bucket"),
        ("s3://radar", "gs://radar", "expected s3://bucket"),
        ("retries = 2", 'endpoint_url = "http://key:hush@host"', "without a user"),
        ("retries = 2", 'secret = "hush"', "unknown key"),
    ],
)
def test_settings_of_a_bucket_that_are_refused(tmp_path, good, bad, said):
    (tmp_path / "nowcast.toml").write_text(SETTINGS.replace(good, bad))
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, None, {})
    assert said in str(caught.value) and "hush" not in str(caught.value)


class Killer(VolumeRef):
    """A volume that ends the process that decodes it, as a fault in a library or want of memory would."""

    def __reduce__(self):
        return os._exit, (1,)


def killer(ref: VolumeRef) -> Killer:
    return Killer(**{name: getattr(ref, name) for name in ref.__dataclass_fields__})


def test_a_volume_that_kills_its_process_is_quarantined_and_the_rest_goes_on(folder, store, catalog, monkeypatch):
    domain = feed(folder, processes=2)
    listing = VolumeFiles.list

    def with_a_killer(self, start, end, **others):
        refs = listing(self, start, end, **others)
        return [refs[0], killer(refs[1]), *refs[2:]]

    monkeypatch.setattr(VolumeFiles, "list", with_a_killer)
    result = take_in(domain, store, catalog)
    ((key, reason),) = result.quarantined
    assert key == f"west_{times.compact(MIDNIGHT - STEP)}.h5" and "killed the process" in reason and result.framed == 2
    assert sorted(states(catalog).values()) == ["framed", "framed", "framed", "quarantined"]
    (kept,) = (store.root / "quarantine/net").iterdir()
    assert kept.name.endswith(key)
    assert take_in(domain, store, catalog).unchanged == 4

"""Objects of a bucket, against a real server with faults in between."""

import logging
import socket
import time
from dataclasses import replace

import pytest

from pipeline.errors import BadInput, ConditionFailed, SettingsError, StoreUnavailable
from pipeline.objects import Bucket, CutShort, conditional_writes, split_uri
from pipeline.s3_client import client
from pipeline.source_settings import S3Access
from tests.s3_server import check_keys, dropped, refusal, stalled

BODY = bytes(range(256)) * 1024


@pytest.fixture
def bucket(new_bucket):
    return replace(new_bucket(), prefix="some/where/")


@pytest.fixture
def behind(bucket, proxy):
    """The same bucket as seen through the proxy."""
    return replace(bucket, access=S3Access(endpoint_url=proxy.endpoint, timeout_s=0.5, retries=2))


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://abc", ("abc", "")), ("s3://abc/", ("abc", "")), ("s3://a.b-c/x/y", ("a.b-c", "x/y/")),
        ("s3://abc/x/../y", None), ("s3://abc//x", ("abc", "x/")), ("s3://abc/x//y", None), ("s3://ab?c/x", None),
        ("s3://abc/x\ny", None), ("s3:/abc", None), ("/abc", None), ("s3://key:secret@abc/x", None),
    ],
)  # fmt: skip
def test_addresses(uri, parts):
    if parts is None:
        with pytest.raises(SettingsError, match=r"s3://|prefix"):
            split_uri(uri)
    else:
        assert split_uri(uri) == parts


def test_keys_are_relative_and_come_in_order(bucket):
    whole = replace(bucket, prefix="")
    whole.put(b"", "some/other")
    for n in range(12):
        bucket.put(b"x" * n, f"{n % 3}/{n:04d}")
    found = list(bucket.list())
    assert [o.key for o in found] == sorted(f"{n % 3}/{n:04d}" for n in range(12))
    assert {o.key: o.size for o in found} == {f"{n % 3}/{n:04d}": n for n in range(12)}
    assert [o.key for o in bucket.list("1/", start_after="1/0004")] == ["1/0007", "1/0010"]
    assert list(bucket.folders()) == ["0", "1", "2"] and list(bucket.folders("1/")) == []
    assert found[0] == bucket.head("0/0000") and bucket.head("0/none") is None
    bucket.copy("1/0001", "copy")
    assert bucket.read("copy", 10) == (b"x", bucket.head("1/0001").etag)
    bucket.delete("copy")
    bucket.delete("copy")
    assert bucket.read("copy", 10) is None


def test_conditions_hold_and_are_tried_out(bucket):
    first = bucket.put(b"1", "k", if_none_match=True)
    with pytest.raises(ConditionFailed, match=r"some/where/k"):
        bucket.put(b"2", "k", if_none_match=True)
    second = bucket.put(b"2", "k", if_match=first)
    for tag in (first, "0" * 32):
        with pytest.raises(ConditionFailed):
            bucket.put(b"3", "k", if_match=tag)
    with pytest.raises(ConditionFailed):
        bucket.put(b"3", "none", if_match=second)
    assert bucket.read("k", 10) == (b"2", second)
    assert conditional_writes(bucket) and [o.key for o in bucket.list()] == ["k"]


def test_a_server_without_conditions_is_found_out(behind, monkeypatch):
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, content, key, *conditions, **more: put(self, content, key))
    assert not conditional_writes(behind) and list(behind.list()) == []


def test_a_server_that_refuses_conditions_is_found_out(behind, proxy):
    proxy.faults = [refusal("NotImplemented", 501)]
    assert not conditional_writes(behind)


def test_a_write_whose_answer_was_lost_is_no_conflict_with_itself(behind, proxy):
    proxy.faults = ["lost"]
    tag = behind.put(b"mine", "lock", if_none_match=True)
    assert behind.read("lock", 10) == (b"mine", tag)
    proxy.faults = ["lost"]
    with pytest.raises(ConditionFailed):  # this one is another's
        behind.put(b"yours", "lock", if_none_match=True)


@pytest.mark.parametrize(
    "fault",
    ["cut", "flip", "lost", dropped, refusal("InternalError", 500), refusal("SlowDown", 503), stalled(0.8)],
    ids=["cut", "flipped", "lost", "dropped", "500", "slow down", "stalled"],
)
def test_what_may_pass_is_tried_again(bucket, behind, proxy, tmp_path, fault):
    bucket.put(BODY, "k")
    proxy.faults = [fault]
    info = behind.get("k", tmp_path / "k", len(BODY))
    assert (tmp_path / "k").read_bytes() == BODY and info == bucket.head("k") and len(proxy.seen) == 2


@pytest.mark.parametrize("fault", ["cut", "flip"])
def test_an_object_that_never_comes_whole_is_said(bucket, behind, proxy, tmp_path, fault):
    bucket.put(BODY, "k")
    proxy.then = fault
    with pytest.raises(CutShort, match=r"some/where/k: .*, 3 times"):
        behind.get("k", tmp_path / "k", len(BODY))
    assert len(proxy.seen) == 3 and not (tmp_path / "k").exists()


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        (refusal("InvalidAccessKeyId", 403), "does not know the access key", 1),
        (refusal("SignatureDoesNotMatch", 403), "secret key does not fit", 1),
        (refusal("AccessDenied", 403), "access denied", 1),
        (refusal("RequestTimeTooSkewed", 403), "clock of this machine is off", 1),
        (refusal("SlowDown", 503), "slow down", 3),
        (refusal("InternalError", 500), "500 InternalError", 3),
        (stalled(0.7), "did not answer within 0.5 s", 3),
        (dropped, "no connection", 3),
    ],
    ids=["key", "secret", "denied", "clock", "slow down", "500", "stalled", "dropped"],
)
def test_every_refusal_is_said_in_words_and_tells_no_secret(behind, proxy, caplog, fault, said, requests):
    proxy.then = fault
    with caplog.at_level(logging.INFO), pytest.raises(StoreUnavailable) as caught:
        behind.read("k", 10)
    text = str(caught.value)
    assert said in text and f"s3://{behind.bucket}/some/where/k" in text
    assert not any(word in text + caplog.text for word in ("AKIA", "testing-secret", "Signature=", "StringToSign"))
    assert len(proxy.seen) == requests


def test_what_is_missing_is_no_failure_but_a_missing_bucket_is(bucket, tmp_path):
    with pytest.raises(FileNotFoundError, match="some/where/none"):
        bucket.get("none", tmp_path / "none", 10)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError):
        bucket.copy("none", "to")
    for ask in (Bucket.check, lambda b: list(b.list()), lambda b: b.read("k", 1), lambda b: b.put(b"", "k")):
        with pytest.raises(StoreUnavailable, match="there is no such bucket"):
            ask(replace(bucket, bucket="not-there"))


def test_reading_is_bounded(bucket, tmp_path):
    bucket.put(BODY, "k")
    for ask in (lambda: bucket.read("k", len(BODY) - 1), lambda: bucket.get("k", tmp_path / "k", len(BODY) - 1)):
        with pytest.raises(BadInput, match="more than"):
            ask()


def test_check_looks_at_server_credentials_and_clock(s3_server, bucket, monkeypatch):
    bucket.check()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = S3Access(endpoint_url=f"http://127.0.0.1:{unused.getsockname()[1]}", retries=0)
        with pytest.raises(StoreUnavailable, match="no connection to http://127"):
            replace(bucket, access=nobody).check()
    check_keys(s3_server, True)
    try:
        with pytest.raises(StoreUnavailable, match="does not know the access key"):
            bucket.check()
    finally:
        check_keys(s3_server, False)
    for ahead, said in ((1000, r"100\d s ahead"), (-1000, r"(99\d|1000) s behind")):
        with monkeypatch.context() as patch:
            now = time.time() + ahead
            patch.setattr("pipeline.objects.time.time", lambda now=now: now)
            with pytest.raises(StoreUnavailable, match=said):
                bucket.check()


def test_without_credentials_or_profile_the_way_out_is_said(bucket, monkeypatch):
    tag = bucket.put(b"open", "k")
    client(bucket.access).put_object_acl(Bucket=bucket.bucket, Key="some/where/k", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for changes, said in (
        ({"timeout_s": 4}, "no credentials .* anonymous = true"),
        ({"profile": "x"}, "no profile 'x'"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            replace(bucket, access=bucket.access.model_copy(update=changes)).check()
    public = replace(bucket, access=bucket.access.model_copy(update={"anonymous": True}))
    public.check()
    assert public.read("k", 10) == (b"open", tag)

"""Objects of an S3 bucket, on Amazon or any server that speaks its protocol; how it is reached is in ``s3_client``."""

import hashlib
import random
import re
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from io import SEEK_END, BytesIO
from mimetypes import guess_type
from pathlib import Path
from typing import IO, Any

from pipeline.errors import BadInput, ConditionFailed, SettingsError, StoreUnavailable
from pipeline.s3_client import client, explained
from pipeline.source_settings import S3Access

PIECE_BYTES = 1 << 20
LARGEST_PUT = 5 << 30  # of one request, by the protocol
LONGEST_PAUSE_S = 20.0
CLOCK_TOLERANCE_S = 300.0

_MD5 = re.compile(r"[0-9a-f]{32}")


class CutShort(StoreUnavailable):
    """The server answers, but this object could not be read whole: cut, stalled or not of its checksum."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key below the prefix of the bucket, bytes, entity tag without quotes, time of its writing."""

    key: str
    size: int
    etag: str
    modified: datetime


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix (empty, or ending in a slash) of ``s3://bucket/prefix``.

    Raises:
        SettingsError: it is none.
    """
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(.*))?", uri)
    if found is None:
        raise SettingsError(f"{uri!r}: expected s3://bucket or s3://bucket/prefix")
    bucket, prefix = found[1], (found[2] or "").strip("/")
    if prefix and (any(part in {"", ".", ".."} for part in prefix.split("/")) or not prefix.isprintable()):
        raise SettingsError(f"{uri!r}: the prefix must be names with single slashes between them, none of them . or ..")
    return bucket, prefix + "/" if prefix else ""


@dataclass(frozen=True)
class Bucket:
    """A bucket, or the part of it below ``prefix`` (empty, or ending in a slash), to which all keys are relative.

    Connections are made when they are needed, and shared. Requests are tried again where that may help, with growing
    pauses. Every method raises ``StoreUnavailable`` where the server cannot be reached or refuses, and says why.
    """

    access: S3Access
    bucket: str
    prefix: str = ""

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with ``prefix`` and come after ``start_after``, ordered by key; 1000 per request."""
        for page in self._pages(prefix, start_after=start_after):
            for one in page.get("Contents", ()):
                modified = one["LastModified"].astimezone(UTC)
                yield ObjectInfo(self._inside(one["Key"]), one["Size"], one["ETag"].strip('"'), modified)

    def folders(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        """What stands between ``prefix`` and the next slash, for all keys: names, without asking for the objects."""
        for page in self._pages(prefix, start_after=start_after, Delimiter="/"):
            for one in page.get("CommonPrefixes", ()):
                yield self._inside(one["Prefix"]).removeprefix(prefix).rstrip("/")

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object; None if there is none, or no such bucket: the server does not say which."""
        with explained(self.access, self._name(key)):
            answer = self._unless_missing("head_object", key)
        return None if answer is None else _info(key, answer)

    def get(self, key: str, path: Path, max_bytes: int) -> ObjectInfo:
        """Fetch an object into a file, checked by its length and, where the server gives one, its checksum.

        A failure leaves no file.

        Raises:
            BadInput: it is larger than ``max_bytes``; nothing was fetched.
            FileNotFoundError: there is no such object.
            CutShort: it did not come whole.
        """
        try:
            with path.open("wb") as file:
                info = self._fetch(key, file, max_bytes)
            if info is None:
                raise FileNotFoundError(2, "there is no such object", self._name(key))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return info

    def read(self, key: str, max_bytes: int) -> tuple[bytes, str] | None:
        """Bytes and entity tag of an object; None if there is none.

        Raises:
            BadInput: it is larger than ``max_bytes``.
            CutShort: it did not come whole.
        """
        memory = BytesIO()
        info = self._fetch(key, memory, max_bytes)
        return None if info is None else (memory.getvalue(), info.etag)

    def put(self, content: Path | bytes, key: str, if_match: str | None = None, if_none_match: bool = False) -> str:
        """Write an object, whole or not at all, and return its entity tag; the server checks the bytes it gets.

        Args:
            if_match: the entity tag of the version to replace.
            if_none_match: only if there is none yet.

        Raises:
            ConditionFailed: another version is there (or none, with ``if_match``).
            BadInput: the file is too large for one request.
        """
        with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as body:
            digest = hashlib.file_digest(body, lambda: hashlib.md5(usedforsecurity=False))
            if (size := body.seek(0, SEEK_END)) > LARGEST_PUT:
                raise BadInput(f"{self._name(key)}: {size} bytes, more than one request may carry")
            body.seek(0)
            arguments: dict[str, Any] = {"Body": body, "ContentMD5": b64encode(digest.digest()).decode()}
            arguments["ContentType"] = guess_type(key)[0] or "application/octet-stream"  # for browsers
            if if_match is not None:
                arguments["IfMatch"] = f'"{if_match}"'
            if if_none_match:
                arguments["IfNoneMatch"] = "*"
            try:
                with explained(self.access, self._name(key)):
                    answer = self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, **arguments)
            except ConditionFailed as err:
                # the answer to a first try was lost, and the second try met what the first had written
                if _attempts(err.__cause__) > 0 and (there := self.head(key)) and there.etag == digest.hexdigest():
                    return there.etag
                raise
        return str(answer["ETag"]).strip('"')

    def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""
        with explained(self.access, self._name(key)):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def copy(self, key: str, to: str) -> None:
        """Copy an object within the bucket.

        Raises:
            FileNotFoundError: there is no such object.
        """
        source = {"Bucket": self.bucket, "Key": self.prefix + key}
        with explained(self.access, self._name(key)):
            if self._unless_missing("copy_object", to, CopySource=source) is None:
                raise FileNotFoundError(2, "there is no such object", self._name(key))

    def check(self) -> None:
        """The bucket is there, the credentials are accepted, the clocks of server and machine agree.

        Raises:
            StoreUnavailable: one is not so.
        """
        with explained(self.access, self._name("")):
            answer = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        ahead = 0.0 if date is None else time.time() - parsedate_to_datetime(date).timestamp()
        if abs(ahead) > CLOCK_TOLERANCE_S:
            raise StoreUnavailable(
                f"{self._name('')}: the clock of this machine is {abs(ahead):.0f} s "
                f"{'ahead of' if ahead > 0 else 'behind'} that of the server"
            )

    @property
    def _client(self) -> Any:
        return client(self.access)

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _inside(self, key: str) -> str:
        return key.removeprefix(self.prefix)

    def _pages(self, prefix: str, start_after: str, **more: str) -> Iterator[Any]:
        if start_after:
            more["StartAfter"] = self.prefix + start_after
        with explained(self.access, self._name(prefix)):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix, **more)

    def _unless_missing(self, operation: str, key: str, **more: Any) -> Any:
        from botocore.exceptions import ClientError

        try:
            return getattr(self._client, operation)(Bucket=self.bucket, Key=self.prefix + key, **more)
        except ClientError as err:
            if err.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return None
            raise

    def _fetch(self, key: str, into: IO[bytes], max_bytes: int) -> ObjectInfo | None:
        """The retries of botocore end with the head of the answer; those of its body are here."""
        for attempt in range(self.access.retries + 1):
            if attempt:
                time.sleep(random.random() * min(2.0**attempt, LONGEST_PAUSE_S))
            into.seek(0)
            into.truncate()
            with explained(self.access, self._name(key)):
                answer = self._unless_missing("get_object", key)
            if answer is None:
                return None
            info = _info(key, answer)
            if info.size > max_bytes:
                answer["Body"].close()
                raise BadInput(f"{self._name(key)}: {info.size} bytes, more than the {max_bytes} allowed")
            wrong = _copied(answer, info, into)
            if not wrong:
                return info
        raise CutShort(f"{self._name(key)}: {wrong}, {self.access.retries + 1} times")


@lru_cache(maxsize=64)
def conditional_writes(bucket: Bucket) -> bool:
    """Whether the server keeps to the conditions of ``put``, tried out with a small object; some ignore them."""
    key = f"probe-{uuid.uuid4().hex}"
    try:
        first = bucket.put(b"1", key, if_none_match=True)
        second = bucket.put(b"2", key, if_match=first)
        return _refused(bucket, key, if_none_match=True) and _refused(bucket, key, if_match=first) and second != first
    except ConditionFailed:
        return False
    except StoreUnavailable as err:
        if getattr(err.__cause__, "response", {}).get("Error", {}).get("Code") in {"NotImplemented", "501"}:
            return False
        raise
    finally:
        bucket.delete(key)


def _refused(bucket: Bucket, key: str, if_match: str | None = None, if_none_match: bool = False) -> bool:
    try:
        bucket.put(b"3", key, if_match, if_none_match)
    except ConditionFailed:
        return True
    return False


def _info(key: str, answer: Any) -> ObjectInfo:
    return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC))


def _copied(answer: Any, info: ObjectInfo, into: IO[bytes]) -> str:
    """Copy the body of an answer; what is wrong with it, empty if nothing."""
    from botocore.exceptions import BotoCoreError

    digest = hashlib.md5(usedforsecurity=False)
    size, body = 0, answer["Body"]
    while True:
        try:
            piece = body.read(PIECE_BYTES)
        except (BotoCoreError, OSError) as err:
            body.close()
            return f"the answer broke off after {size} of {info.size} bytes ({type(err).__name__})"
        if not piece:
            break
        size += len(piece)
        digest.update(piece)
        into.write(piece)
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    if size != info.size:
        return f"{size} of {info.size} bytes came"
    if _MD5.fullmatch(info.etag) and not encrypted and digest.hexdigest() != info.etag:
        return "the bytes do not have the checksum that the server gives"
    return ""


def _attempts(err: BaseException | None) -> int:
    return int(getattr(err, "response", {}).get("ResponseMetadata", {}).get("RetryAttempts", 0))

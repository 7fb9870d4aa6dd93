"""How an S3 server is reached, and its refusals in words; what is done with objects is in ``objects``."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pipeline.errors import ConditionFailed, StoreUnavailable
from pipeline.source_settings import S3Access

_WORDS = {
    "InvalidAccessKeyId": "the server does not know the access key; check the credentials",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; check the credentials",
    "InvalidToken": "the session token is not valid; check the credentials",
    "ExpiredToken": "the credentials have expired",
    "AccessDenied": "access denied: these credentials (or none, if anonymous) may not do this",
    "403": "access denied: these credentials (or none, if anonymous) may not do this",
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket",
    "RequestTimeTooSkewed": "the clock of this machine is off: the server refuses requests of its time",
    "SlowDown": "the server asks to slow down, also after all retries",
}


@lru_cache(maxsize=16)
def client(access: S3Access) -> Any:
    """The client of boto3, one for all who ask with the same settings; threads may share it."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=access.timeout_s,
        read_timeout=access.timeout_s,
        retries={"mode": "standard", "total_max_attempts": access.retries + 1},
        signature_version=UNSIGNED if access.anonymous else None,
        # what servers other than Amazon's understand: the bucket in the path, and a checksum that is not trailing
        s3={"addressing_style": "path" if access.endpoint_url else "auto"},
        request_checksum_calculation="when_required",
    )
    session = boto3.Session(profile_name=access.profile or None, region_name=access.region)
    return session.client("s3", endpoint_url=access.endpoint_url or None, config=config)


@contextmanager
def explained(access: S3Access, name: str) -> Iterator[None]:
    """What boto3 raises as an error for people: ``ConditionFailed``, else ``StoreUnavailable``.

    Args:
        name: what is asked for, as s3://bucket/key.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as err:
        status = err.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = err.response["Error"]["Code"]
        if err.operation_name == "PutObject" and (status in {409, 412} or code == "NoSuchKey"):
            raise ConditionFailed(f"{name}: another version of it is there, or none ({code})") from err
        raise StoreUnavailable(f"{name}: {_WORDS.get(code) or f'the server answers {status} {code}'}") from err
    except BotoCoreError as err:
        raise StoreUnavailable(f"{name}: {_in_words(err, access)}") from err


def _in_words(err: Exception, access: S3Access) -> str:
    """Why a request failed before an answer; never the address that was asked for, which may be signed."""
    name = type(err).__name__
    server = access.endpoint_url or "Amazon S3"
    if name in {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"}:
        return "no credentials were found in the environment; a public bucket wants anonymous = true"
    if name == "ProfileNotFound":
        return f"there is no profile {access.profile!r} in the AWS files of this user"
    if "Timeout" in name:
        return f"{server} did not answer within {access.timeout_s:g} s, {access.retries + 1} times"
    if name == "SSLError":
        return f"{server} shows no certificate that this machine trusts"
    if name in {"EndpointConnectionError", "ConnectionClosedError", "ProxyConnectionError", "ConnectionError"}:
        return f"no connection to {server}"
    return f"the request to {server} failed ({name})"

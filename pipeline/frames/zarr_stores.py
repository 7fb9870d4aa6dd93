"""Where Zarr keeps its objects: in files that appear whole, or in the bucket of the store."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as Zarr
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore

from pipeline.bucket_store import BucketStore
from pipeline.errors import StoreUnavailable, reading
from pipeline.source_settings import S3Access
from pipeline.storage import Store, writing


def zarr_store(store: Store, folder: Path) -> Zarr:
    """What Zarr reads and writes through for a folder of the store.

    Raises:
        StoreUnavailable: there are no credentials for the bucket; later, the bucket cannot be reached.
    """
    if isinstance(store, BucketStore):
        bucket = store.bucket
        return _Objects(_client(bucket.access, bucket.bucket, f"{bucket.prefix}{store.relative(folder)}"))
    return _Folder(store, folder)


class _Folder(LocalStore):
    """Zarr objects through ``Store.publish``: atomic, flushed to disk, temporaries that name their process.

    What the machine cannot read or remove is ``StoreUnavailable``, never a frame that is damaged.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(folder)
        self._store = store

    async def _open(self, *, mode: Any = None) -> None:
        with reading(self.root):
            await super()._open(mode=mode)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with reading(self.root / key):
            return await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with reading(self.root / key):
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def exists(self, key: str) -> bool:
        with reading(self.root / key):
            return await super().exists(key)

    async def delete(self, key: str) -> None:
        with writing(self.root / key):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with writing(self.root / prefix):
            await super().delete_dir(prefix)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with reading(self.root / prefix):
            async for key in super().list_prefix(prefix):
                yield key

    async def set(self, key: str, value: Buffer) -> None:
        def publish() -> None:
            with self._store.publish(self.root / key) as path:
                path.write_bytes(value.as_buffer_like())

        await asyncio.to_thread(publish)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)


class _Objects(ObjectStore[Any]):
    """Zarr objects through obstore; a bucket that fails is ``StoreUnavailable``, never a frame that is damaged."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with _explained(self, key):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        with _explained(self, key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):  # servers that know no conditions take this too; all write the same bytes
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        with _explained(self, key):
            return await super().exists(key)

    async def delete(self, key: str) -> None:
        with _explained(self, key):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with _explained(self, prefix):
            await super().delete_dir(prefix)

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        with _explained(self, prefix):
            async for key in super().list_prefix(prefix):
                yield key


@contextmanager
def _explained(objects: _Objects, key: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as err:
        config, prefix = objects.store.config, objects.store.prefix
        reason = str(err).partition("\n")[0]
        raise StoreUnavailable(f"s3://{config.get('bucket')}/{prefix}/{key}: {reason}") from err


@lru_cache(maxsize=32)
def _client(access: S3Access, bucket: str, prefix: str) -> Any:
    """The same server, credentials, patience and retries as ``s3_client``'s, for many small objects at once."""
    from obstore.store import S3Store

    how: dict[str, Any] = (
        {"skip_signature": True} if access.anonymous else {"credential_provider": _credentials(access)}
    )
    if access.endpoint_url:
        how["endpoint"] = access.endpoint_url
    timeout = timedelta(seconds=access.timeout_s)
    return S3Store(
        bucket,
        prefix=prefix,
        region=access.region,
        virtual_hosted_style_request=not access.endpoint_url,
        client_options={"timeout": timeout, "connect_timeout": timeout, "allow_http": True},
        retry_config={"max_retries": access.retries, "retry_timeout": timeout * (access.retries + 1)},
        **how,
    )


@lru_cache(maxsize=16)
def _credentials(access: S3Access) -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=access.profile or None, region_name=access.region))
    except (BotoCoreError, ValueError) as err:
        raise StoreUnavailable("no credentials were found in the environment for the bucket of the store") from err

"""Where Zarr keeps its objects: in files that appear whole."""

import asyncio
from pathlib import Path

from zarr.abc.store import Store as Zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from pipeline.storage import Store


def zarr_store(store: Store, folder: Path) -> Zarr:
    """What Zarr reads and writes through for a folder of the store."""
    return _DurableFolder(store, folder)


class _DurableFolder(LocalStore):
    """Zarr objects through ``Store.publish``: atomic, flushed to disk, temporaries that name their process."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(folder)
        self._store = store

    async def set(self, key: str, value: Buffer) -> None:
        def publish() -> None:
            with self._store.publish(self.root / key) as path:
                path.write_bytes(value.as_buffer_like())

        await asyncio.to_thread(publish)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not (self.root / key).exists():
            await self.set(key, value)

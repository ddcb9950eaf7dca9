"""A store that cannot take another model."""

from meshnode.errors import StoreError
from meshnode.store.memory import MemoryStore

__all__ = ["FullStore"]


class FullStore(MemoryStore):
    """A store whose disk is full."""

    async def commit(self, batch, *, sync=False):
        if not any(key.startswith(b"models/") for key, _ in batch.changes):
            return await super().commit(batch, sync=sync)
        raise StoreError("the store cannot grow: the disk is full")

"""The back end that keeps nothing: for tests, and the reference for what the others must do."""

from collections.abc import Iterator

import attrs
import trio

from meshnode.errors import StoreError
from meshnode.store.protocol import Snapshot, WriteBatch

__all__ = ["MemoryStore"]


@attrs.define(eq=False)
class MemoryStore:
    """A dictionary that is replaced, never changed, by each commit; so a snapshot is just a reference."""

    _data: dict[bytes, bytes] | None = attrs.field(factory=dict)

    def _open_data(self) -> dict[bytes, bytes]:
        if self._data is None:
            raise StoreError("the store is closed")
        return self._data

    def get(self, key: bytes) -> bytes | None:
        """See KeyValueStore."""
        return self._open_data().get(key)

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        return iter(sorted(item for item in self._open_data().items() if item[0].startswith(prefix)))

    def batch(self) -> WriteBatch:
        """See KeyValueStore."""
        return WriteBatch()

    async def commit(self, batch: WriteBatch, *, sync: bool = False) -> None:  # noqa: ARG002 - nothing to sync
        """See KeyValueStore."""
        await trio.lowlevel.checkpoint_if_cancelled()
        changed = dict(self._open_data())
        for key, value in batch.changes:
            if value is None:
                changed.pop(key, None)
            else:
                changed[key] = value
        self._data = changed
        await trio.lowlevel.cancel_shielded_checkpoint()

    def snapshot(self) -> Snapshot:
        """See KeyValueStore."""
        return MemoryStore(self._open_data())

    def close(self) -> None:
        """See KeyValueStore."""
        self._data = None

"""The LevelDB back end, through plyvel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import plyvel

from meshnode.flow.lanes import Lanes
from meshnode.store.failures import explain
from meshnode.store.protocol import Snapshot, WriteBatch

__all__ = ["LevelStore"]

_FAILURES = (plyvel.Error, OSError, RuntimeError)  # RuntimeError: used after close


@attrs.define(eq=False)
class _Reader:
    """What the store and its snapshots have in common."""

    _handle: Any  # plyvel.DB or its Snapshot
    _path: Path

    def get(self, key: bytes) -> bytes | None:
        """See KeyValueStore."""
        try:
            value: bytes | None = self._handle.get(key)
        except _FAILURES as error:
            raise explain(error, self._path) from error
        return value

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        try:
            rows = self._handle.iterator(prefix=prefix)  # LevelDB pins the moment here, not at the first pair
        except _FAILURES as error:
            raise explain(error, self._path) from error
        return self._walk(rows)

    def _walk(self, rows: Any) -> Iterator[tuple[bytes, bytes]]:  # noqa: ANN401 - plyvel has no types
        try:
            with rows:
                yield from rows
        except _FAILURES as error:
            raise explain(error, self._path) from error

    def close(self) -> None:
        """See KeyValueStore."""
        self._handle.close()


@attrs.define(eq=False)
class LevelStore(_Reader):
    """An open LevelDB folder."""

    _lanes: Lanes

    @classmethod
    def open(cls, path: Path, lanes: Lanes) -> "LevelStore":
        """Open or create the folder `path`; blocks, so call it in the store lane. Raises StoreError."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(plyvel.DB(str(path), create_if_missing=True), path, lanes)
        except _FAILURES as error:
            raise explain(error, path) from error

    def batch(self) -> WriteBatch:
        """See KeyValueStore."""
        return WriteBatch()

    async def commit(self, batch: WriteBatch, *, sync: bool = False) -> None:
        """See KeyValueStore."""
        await self._lanes.run("store", self._write, tuple(batch.changes), sync)

    def _write(self, changes: tuple[tuple[bytes, bytes | None], ...], sync: bool) -> None:
        try:
            with self._handle.write_batch(transaction=True, sync=sync) as writes:
                for key, value in changes:
                    if value is None:
                        writes.delete(key)
                    else:
                        writes.put(key, value)
        except _FAILURES as error:
            raise explain(error, self._path) from error

    def snapshot(self) -> Snapshot:
        """See KeyValueStore."""
        try:
            return _Reader(self._handle.snapshot(), self._path)
        except _FAILURES as error:
            raise explain(error, self._path) from error

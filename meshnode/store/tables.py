"""Typed tables: a prefix of the store with a codec for keys, one for values, and a schema version."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

import attrs
import msgspec

from meshnode.errors import StoreError
from meshnode.store.migrations import Migration, migrate
from meshnode.store.protocol import KeyValueStore, WriteBatch

__all__ = ["Codec", "Table", "struct_codec", "text_codec"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


@attrs.frozen
class Codec(Generic[T]):
    """To bytes and back; `decode` raises ValueError (msgspec's errors are) for bytes it cannot read."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def text_codec() -> Codec[str]:
    """Return the codec of UTF-8 text; as a key codec it keeps the order of code points."""
    return Codec(str.encode, bytes.decode)


def struct_codec(kind: type[T]) -> Codec[T]:
    """Return the msgpack codec of an attrs class, msgspec Struct or plain type; unknown fields are ignored."""
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(kind)
    return Codec(encoder.encode, decoder.decode)


@attrs.define(eq=False)
class Table(Generic[K, V]):
    """Rows of one kind. `prefix` must not be the beginning of another table's; end it with a slash.

    Call `prepare` once before use. One subsystem writes a table; anybody may read it.
    """

    _store: KeyValueStore
    _prefix: bytes
    _keys: Codec[K]
    _values: Codec[V]
    _version: int = 1
    _migrations: Mapping[int, Migration] = MappingProxyType({})

    async def prepare(self) -> None:
        """Stamp a new table, migrate an old one. Raises StoreError if a newer program wrote it."""
        await migrate(self._store, self._prefix, self._version, self._migrations)

    def get(self, key: K) -> V | None:
        """Return the row, or None. Raises StoreError for one that cannot be decoded."""
        stored = self._store.get(self._prefix + self._keys.encode(key))
        return None if stored is None else self._decode(self._values, stored, key)

    def items(self) -> Iterator[tuple[K, V]]:
        """Yield all rows in order of their encoded keys, as they were at the call."""
        return self._walk(self._store.iterate(self._prefix))

    def _walk(self, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[K, V]]:
        for stored_key, stored in rows:
            key = self._decode(self._keys, stored_key.removeprefix(self._prefix), stored_key)
            yield key, self._decode(self._values, stored, key)

    async def put(self, key: K, value: V, *, sync: bool = False) -> None:
        """Write one row; cancellation as in KeyValueStore.commit."""
        batch = self._store.batch()
        self.put_in(batch, key, value)
        await self._store.commit(batch, sync=sync)

    async def delete(self, key: K, *, sync: bool = False) -> None:
        """Remove one row; cancellation as in KeyValueStore.commit."""
        batch = self._store.batch()
        self.delete_in(batch, key)
        await self._store.commit(batch, sync=sync)

    def put_in(self, batch: WriteBatch, key: K, value: V) -> None:
        """Add the write to a batch, to commit it with others."""
        batch.put(self._prefix + self._keys.encode(key), self._values.encode(value))

    def delete_in(self, batch: WriteBatch, key: K) -> None:
        """Add the removal to a batch, to commit it with others."""
        batch.delete(self._prefix + self._keys.encode(key))

    def _decode(self, codec: Codec[T], stored: bytes, key: object) -> T:
        try:
            return codec.decode(stored)
        except ValueError as error:
            table = self._prefix.decode(errors="replace")
            raise StoreError(f"table {table!r}: row {key!r} cannot be read: {error}") from error

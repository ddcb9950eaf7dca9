"""What a back end must do; `tests/contracts/test_store.py` holds each one to it."""

from collections.abc import Iterator
from typing import Protocol

import attrs

__all__ = ["KeyValueStore", "Snapshot", "WriteBatch", "prefix_end"]


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key after all keys that start with `prefix`; None when there is no such key."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


@attrs.define(eq=False)
class WriteBatch:
    """Changes to be committed together, in order; a later change to the same key wins. One commit per batch."""

    changes: list[tuple[bytes, bytes | None]] = attrs.field(factory=list, init=False)

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self.changes.append((key, value))

    def delete(self, key: bytes) -> None:
        """Remove `key`; removing what is not there is no error."""
        self.changes.append((key, None))


class Snapshot(Protocol):
    """The store as it was at one moment, whatever is committed later. Close it: it holds resources."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose key starts with `prefix`, in order of the key's bytes."""

    def close(self) -> None:
        """Let go of the moment; reading afterwards raises StoreError. Closing twice is no error."""


class KeyValueStore(Protocol):
    """Ordered bytes to bytes. Reads are synchronous and take microseconds; call it from the Trio thread."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None. Raises StoreError."""

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose key starts with `prefix`, in byte order, as they were at the call."""

    def batch(self) -> WriteBatch:
        """Return an empty batch."""

    async def commit(self, batch: WriteBatch, *, sync: bool = False) -> None:
        """Apply the whole batch or nothing. With `sync` it survives a power cut once this returns.

        Raises StoreError. Cancellation before the write starts leaves the store unchanged; once started, the write
        is completed and then the cancellation is delivered.
        """

    def snapshot(self) -> Snapshot:
        """Return the store as it is now."""

    def close(self) -> None:
        """Close the files; using the store afterwards raises StoreError. Closing twice is no error."""

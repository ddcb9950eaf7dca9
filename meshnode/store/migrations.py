"""Bringing a table's rows from an older schema version to the current one, one function for each version."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from meshnode.errors import StoreError
from meshnode.store.protocol import KeyValueStore

__all__ = ["Migration", "migrate", "version_key"]

Migration: TypeAlias = Callable[[bytes, bytes], tuple[bytes, bytes] | None]
"""From (key, value) of version n to those of n + 1, key without the table's prefix; None drops the row."""


def version_key(prefix: bytes) -> bytes:
    """Return the key under which a table's schema version is kept."""
    return b"\x00schema/" + prefix


async def migrate(store: KeyValueStore, prefix: bytes, version: int, migrations: Mapping[int, Migration]) -> None:
    """Bring the rows under `prefix` to `version` in one synced batch, rows and version number together.

    `migrations[n]` leads from n to n + 1. An empty table is simply stamped. Raises StoreError for a newer version or
    a missing step. Cancelled before the commit, nothing has changed.
    """
    stamp = store.get(version_key(prefix))
    current = version if stamp is None else int(stamp)
    if current > version:
        raise StoreError(
            f"table {prefix.decode(errors='replace')!r} has schema version {current}, newer than {version}, "
            "the newest this program knows; use the newer meshnode that wrote it"
        )
    if stamp is not None and current == version:
        return
    batch = store.batch()
    old = dict(store.iterate(prefix)) if current < version else {}
    rows = {key.removeprefix(prefix): value for key, value in old.items()}
    for step in range(current, version):
        if step not in migrations:
            raise StoreError(f"table {prefix.decode(errors='replace')!r}: no migration from schema version {step}")
        moved = (migrations[step](key, value) for key, value in rows.items())
        rows = dict(pair for pair in moved if pair is not None)
    for key in old:
        batch.delete(key)
    for key, value in rows.items():
        batch.put(prefix + key, value)
    batch.put(version_key(prefix), str(version).encode())
    await store.commit(batch, sync=True)

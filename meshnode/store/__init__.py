"""The node's database: ordered bytes, atomic batches, typed tables on top.

Knows nothing of what the tables mean. Every prefix has one writer, the subsystem that owns the table.
The open store is owned by whoever entered `open_store`; one process at a time.
"""

from meshnode.store.memory import MemoryStore
from meshnode.store.migrations import Migration
from meshnode.store.opening import open_store
from meshnode.store.protocol import KeyValueStore, Snapshot, WriteBatch
from meshnode.store.tables import Codec, Table, struct_codec, text_codec

__all__ = [
    "Codec",
    "KeyValueStore",
    "MemoryStore",
    "Migration",
    "Snapshot",
    "Table",
    "WriteBatch",
    "open_store",
    "struct_codec",
    "text_codec",
]

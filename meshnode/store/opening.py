"""Opening the store: which back end, and in which thread."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from meshnode.errors import StoreError
from meshnode.flow.lanes import Lanes
from meshnode.store.protocol import KeyValueStore

__all__ = ["open_store"]


@asynccontextmanager
async def open_store(path: Path, lanes: Lanes) -> AsyncIterator[KeyValueStore]:
    """Open or create the store in folder `path`: LevelDB where plyvel is installed, else SQLite.

    Raises StoreError when another process has it, or the folder cannot be written, or was made by a back end that is
    not installed here. Cancellation waits for the opening. The store is closed when the context ends, after the writes
    that are under way.
    """
    store = await lanes.run("store", _open, path, lanes)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):  # bounded: it writes out what is there, which may take some disk time
            await lanes.run("store", store.close)


def _open(path: Path, lanes: Lanes) -> KeyValueStore:
    has_plyvel = importlib.util.find_spec("plyvel") is not None
    made_by_sqlite = (path / "store.sqlite3").exists()
    made_by_leveldb = (path / "CURRENT").exists()
    if made_by_leveldb and not has_plyvel:
        raise StoreError(f"the store in {path} is a LevelDB folder and plyvel is not installed; pip install plyvel")
    if has_plyvel and not made_by_sqlite:
        from meshnode.store.leveldb import LevelStore

        return LevelStore.open(path, lanes)
    from meshnode.store.sqlite import SqliteStore

    return SqliteStore.open(path, lanes)

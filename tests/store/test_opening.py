import importlib.util

import pytest
import trio

from meshnode.errors import StoreError
from meshnode.flow.lanes import Lanes
from meshnode.store import open_store
from meshnode.store.sqlite import SqliteStore


@pytest.fixture
def level_store():
    pytest.importorskip("plyvel")
    from meshnode.store.leveldb import LevelStore

    return LevelStore


@pytest.fixture
def no_plyvel(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plyvel" else found(name))


async def test_leveldb_is_chosen_where_it_is_installed(tmp_path, level_store):
    async with open_store(tmp_path / "new" / "store", Lanes()) as store:
        assert isinstance(store, level_store)


async def test_a_sqlite_folder_stays_one_even_where_leveldb_is_installed(tmp_path):
    SqliteStore.open(tmp_path, Lanes()).close()
    async with open_store(tmp_path, Lanes()) as store:
        assert isinstance(store, SqliteStore)


async def test_sqlite_is_the_fallback(tmp_path, no_plyvel):
    async with open_store(tmp_path, Lanes()) as store:
        assert isinstance(store, SqliteStore)


async def test_a_leveldb_folder_is_not_opened_as_an_empty_sqlite_one(tmp_path, level_store, no_plyvel):
    level_store.open(tmp_path, Lanes()).close()
    with pytest.raises(StoreError, match="plyvel"):
        async with open_store(tmp_path, Lanes()):
            pass


async def test_cancelling_what_uses_the_store_still_closes_it(tmp_path):
    lanes = Lanes()
    with trio.CancelScope() as scope:
        async with open_store(tmp_path, lanes) as store:
            scope.cancel()
            await trio.sleep_forever()
    with pytest.raises(StoreError, match="closed"):
        store.get(b"key")
    async with open_store(tmp_path, lanes):
        pass  # and its lock is gone

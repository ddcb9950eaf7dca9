"""One suite over every back end: what is true of one must be true of all."""

import importlib.util
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from meshnode.errors import StoreError
from meshnode.flow.lanes import Lanes
from meshnode.store.memory import MemoryStore
from meshnode.store.sqlite import SqliteStore

ON_DISK = [SqliteStore]
if importlib.util.find_spec("plyvel"):
    from meshnode.store.leveldb import LevelStore

    ON_DISK.append(LevelStore)
BACK_ENDS = [*ON_DISK, MemoryStore]


@pytest.fixture(params=BACK_ENDS, ids=lambda kind: kind.__name__)
def store(request, tmp_path):
    opened = MemoryStore() if request.param is MemoryStore else request.param.open(tmp_path / "store", Lanes())
    yield opened
    opened.close()


@pytest.fixture(params=ON_DISK, ids=lambda kind: kind.__name__)
def back_end(request):
    return request.param


async def fill(store, pairs, sync=False):
    batch = store.batch()
    for key, value in pairs.items():
        batch.put(key, value)
    await store.commit(batch, sync=sync)


async def test_a_prefix_is_walked_in_byte_order_and_nothing_else(store):
    keys = [b"a", b"a\x00", b"a\x7f", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xffz", b"A"]
    await fill(store, {key: key * 2 for key in reversed(keys)})
    assert list(store.iterate(b"a")) == [(key, key * 2) for key in sorted(keys) if key.startswith(b"a")]
    assert [key for key, _ in store.iterate(b"\xff")] == [b"\xff", b"\xff\xffz"]
    assert [key for key, _ in store.iterate(b"")] == sorted(keys)
    assert list(store.iterate(b"none")) == []


async def test_a_walk_longer_than_a_page_misses_and_repeats_nothing(store):
    pairs = {b"k%05d" % number: b"v" for number in range(1000)}
    await fill(store, pairs)
    assert [key for key, _ in store.iterate(b"k")] == list(pairs)


async def test_a_walk_shows_the_moment_it_was_asked_for(store):
    await fill(store, {b"k%03d" % number: b"old" for number in range(600)})
    walk = store.iterate(b"k")
    first = next(walk)
    await fill(store, {b"k%03d" % number: b"new" for number in range(700)})
    assert first[1] == b"old"
    assert [value for _, value in walk] == [b"old"] * 599


async def test_a_walk_is_pinned_at_the_call_not_at_the_first_pair(store):
    await fill(store, {b"k": b"old"})
    walk = store.iterate(b"k")
    await fill(store, {b"k": b"new"})
    assert list(walk) == [(b"k", b"old")]


async def test_an_empty_value_is_not_an_absent_one(store):
    await fill(store, {b"empty": b""})
    assert store.get(b"empty") == b""
    assert store.get(b"absent") is None


async def test_the_last_change_of_a_key_in_a_batch_wins(store):
    batch = store.batch()
    batch.put(b"x", b"1")
    batch.delete(b"x")
    batch.put(b"y", b"1")
    batch.put(b"y", b"2")
    batch.delete(b"never there")
    await store.commit(batch)
    assert store.get(b"x") is None
    assert store.get(b"y") == b"2"


async def test_a_batch_that_fails_half_way_leaves_nothing(store):
    batch = store.batch()
    batch.put(b"good", b"1")
    batch.put(b"bad", object())
    if isinstance(store, MemoryStore):
        pytest.skip("a dictionary takes any value")
    with pytest.raises((StoreError, TypeError)):
        await store.commit(batch)
    assert store.get(b"good") is None
    await fill(store, {b"after": b"1"})
    assert store.get(b"after") == b"1"


async def test_a_snapshot_does_not_see_later_commits(store):
    await fill(store, {b"a": b"old", b"b": b"old"})
    snapshot = store.snapshot()
    batch = store.batch()
    batch.put(b"a", b"new")
    batch.delete(b"b")
    batch.put(b"c", b"new")
    await store.commit(batch)
    assert list(snapshot.iterate(b"")) == [(b"a", b"old"), (b"b", b"old")]
    assert snapshot.get(b"c") is None
    assert list(store.iterate(b"")) == [(b"a", b"new"), (b"c", b"new")]
    snapshot.close()
    snapshot.close()


async def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get(b"a")
    with pytest.raises(StoreError, match="closed"):
        await fill(store, {b"a": b"b"})


async def test_what_was_committed_is_there_after_reopening(back_end, tmp_path):
    for sync in (False, True):
        store = back_end.open(tmp_path, Lanes())
        await fill(store, {b"sync %d" % sync: b"value"}, sync=sync)
        store.close()
    store = back_end.open(tmp_path, Lanes())
    assert list(store.iterate(b"sync")) == [(b"sync 0", b"value"), (b"sync 1", b"value")]
    store.close()


PRELUDE = """
import importlib, resource, signal, sys, trio
from pathlib import Path
from meshnode.errors import StoreError
from meshnode.flow.lanes import Lanes
back_end, path = getattr(importlib.import_module(sys.argv[1]), sys.argv[2]), Path(sys.argv[3])
"""


def in_another_process(back_end, path, body):
    script = PRELUDE + textwrap.dedent(body)
    command = [sys.executable, "-c", script, back_end.__module__, back_end.__name__, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.processes
def test_a_second_process_is_told_that_the_store_is_in_use(back_end, tmp_path):
    store = back_end.open(tmp_path, Lanes())
    body = """
    try:
        back_end.open(path, Lanes())
    except StoreError as error:
        print(error)
    """
    result = in_another_process(back_end, tmp_path, body)
    store.close()
    assert "in use by another process" in result.stdout, result.stderr
    assert str(tmp_path) in result.stdout


@pytest.mark.processes
async def test_synced_writes_survive_a_process_that_dies_without_closing(back_end, tmp_path):
    body = """
    import os
    async def write():
        store = back_end.open(path, Lanes())
        batch = store.batch()
        batch.put(b"key", b"value")
        await store.commit(batch, sync=True)
        os._exit(9)
    trio.run(write)
    """
    assert in_another_process(back_end, tmp_path, body).returncode == 9
    store = back_end.open(tmp_path, Lanes())
    assert store.get(b"key") == b"value"
    store.close()


def test_a_file_where_the_folder_should_be_is_a_store_error(back_end, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        back_end.open(tmp_path / "file", Lanes())


@pytest.mark.processes
def test_a_read_only_folder_is_named(back_end):
    body = """
    import os
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        back_end.open(path, Lanes())
    except StoreError as error:
        print(error)
    """
    with tempfile.TemporaryDirectory() as folder:  # tmp_path's parents are closed to other users
        Path(folder).chmod(0o555)
        result = in_another_process(back_end, folder, body)
    assert "cannot be written" in result.stdout, result.stdout + result.stderr
    assert folder in result.stdout


@pytest.mark.processes
def test_a_full_disk_refuses_the_batch_and_keeps_what_was_there(back_end, tmp_path):
    body = """
    async def write():
        store = back_end.open(path, Lanes())
        first = store.batch()
        first.put(b"kept", b"1")
        await store.commit(first, sync=True)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        second = store.batch()
        for number in range(64):
            second.put(b"big %d" % number, bytes(1 << 16))
        try:
            await store.commit(second, sync=True)
        except StoreError as error:
            print(error)
        print("kept", store.get(b"kept"))
        import os; sys.stdout.flush(); os._exit(0)
    trio.run(write)
    """
    result = in_another_process(back_end, tmp_path, body)
    assert "disk is full or a size limit" in result.stdout, result.stdout + result.stderr
    assert "kept b'1'" in result.stdout
    store = back_end.open(tmp_path, Lanes())
    assert [key for key, _ in store.iterate(b"")] == [b"kept"]
    store.close()

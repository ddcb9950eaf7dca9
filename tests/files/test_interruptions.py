"""Imports and removals that are cancelled, killed, or run out of room: nothing is lost and nothing is left lying about."""

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, StoreError
from meshnode.files import staging
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.flow.lanes import Lanes
from meshnode.store.memory import MemoryStore
from meshnode.store.opening import open_store


class FullStore(MemoryStore):
    """A store whose disk is full."""

    async def commit(self, batch, *, sync=False):
        if not any(key.startswith(b"models/") for key, _ in batch.changes):
            return await super().commit(batch, sync=sync)
        raise StoreError("the store cannot grow: the disk is full")


@pytest.fixture
def file_size_limit():
    """Let no file grow beyond 200 KiB: the nearest thing to a full disk that needs no privileges."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def frozen(data):
    """Make the data folder read-only, for root too."""
    data.root.mkdir()
    if os.geteuid() != 0:
        data.root.chmod(0o500)
    elif subprocess.run(["chattr", "+i", str(data.root)], capture_output=True).returncode != 0:
        pytest.skip("root, and chattr does not work here")
    yield
    subprocess.run(["chattr", "-i", str(data.root)], capture_output=True)
    data.root.chmod(0o700)


async def test_a_cancelled_import_leaves_nothing_and_can_be_asked_for_again(data, tiny):
    async with data.running() as node:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.mailbox.ask, AcquireModel(str(tiny)))
            await node.phase("importing")
            nursery.cancel_scope.cancel()
        await node.idle()
        assert data.files(".") == []
        assert node.catalog.manifests() == ()
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
        assert len(node.catalog.held(manifest.id)) == len(manifest.shards)


async def test_cancelled_once_the_catalog_knows_the_model_it_is_completed_all_the_same(data, tiny):
    class Cancelling(MemoryStore):
        async def commit(self, batch, *, sync=False):
            await super().commit(batch, sync=sync)
            if any(len(key) > 64 for key, _ in batch.changes):  # a model's row
                asking.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()  # until the cancellation is everywhere

    data.store, asking = Cancelling(), trio.CancelScope()
    async with data.running() as node:
        with asking:
            await node.mailbox.ask(AcquireModel(str(tiny)))
        assert asking.cancelled_caught
        await node.phase("done")
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        assert {path.stem for path in data.files(".")} == {shard.id for shard in manifest.shards}


async def test_stopping_in_the_middle_of_an_import_leaves_nothing(data, tiny):
    async with trio.open_nursery() as nursery, data.running() as node:
        nursery.start_soon(node.mailbox.tell, AcquireModel(str(tiny)))
        await node.phase("importing")
    assert data.files(".") == []


async def test_a_disk_that_fills_up_fails_the_import_and_keeps_what_was_there(data, tiny, tmp_path, file_size_limit):
    small = write_tiny_llama(tmp_path / "small.gguf", hidden=32, heads=2, kv_heads=1, feed_forward=64, name="Small")
    async with data.running() as node:
        kept = await node.mailbox.ask(AcquireModel(str(small)))
        before = data.files(".")
        with pytest.raises(FileError, match=r"cannot write a shard to .*; free space or choose another"):
            await node.mailbox.ask(AcquireModel(str(tiny)))
        assert data.files(".") == before
        assert node.catalog.manifests() == (kept,)
        assert len(node.catalog.held(kept.id)) == len(kept.shards)


async def test_a_store_that_is_full_fails_the_import_and_leaves_nothing(data, tiny):
    data.store = FullStore()
    async with data.running() as node:
        with pytest.raises(StoreError, match="disk is full"):
            await node.mailbox.ask(AcquireModel(str(tiny)))
        assert data.files(".") == []
        assert node.catalog.manifests() == ()


async def test_a_store_that_is_full_keeps_what_was_to_be_removed(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    before = data.files(".")
    data.store = FullStore(data.store._data)
    async with data.running() as node:
        await node.settled(manifest)
        with pytest.raises(StoreError):
            await node.mailbox.ask(RemoveModel(manifest.name))
        assert data.files(".") == before
        assert len(node.catalog.held(manifest.id)) == len(manifest.shards)


async def test_a_read_only_data_folder_is_named(data, tiny, frozen):
    async with data.running() as node:
        with pytest.raises(FileError, match=f"cannot write to the data folder {data.root}: "):
            await node.mailbox.ask(AcquireModel(str(tiny)))


async def test_shards_that_cannot_be_put_in_their_place_take_the_model_back_out(data, tiny, monkeypatch):
    real, calls = staging.publish_shard, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise FileError("cannot move a shard: No space left on device")
        return real(*arguments)

    monkeypatch.setattr(staging, "publish_shard", failing)
    async with data.running() as node:
        with pytest.raises(FileError, match="No space left"):
            await node.mailbox.ask(AcquireModel(str(tiny)))
        assert node.catalog.manifests() == ()
        assert data.files(".") == []


async def test_stale_temporary_files_are_swept_at_start(data, tiny):
    stale = data.paths.partial / "0123" / "deep"
    stale.mkdir(parents=True)
    (stale / "shard.writing").write_bytes(bytes(1000))
    (stale / f"{'ab' * 32}.shard").write_bytes(bytes(1000))
    (data.paths.partial / "loose").write_bytes(b"x")
    async with data.running():
        assert data.files(".") == []


async def test_a_folder_that_cannot_be_tidied_does_not_keep_the_models_from_being_used(data, tiny, monkeypatch):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    (data.paths.partial / "stale").mkdir()

    def stuck(folder):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(staging, "discard", stuck)
    async with data.running() as node:
        await node.settled(manifest)


# A child that does `actions` against a real store and dies by `os._exit` in the given function's nth call.
_CHILD = """
import os, sys, trio
from pathlib import Path
from meshnode.config.paths import DataPaths
from meshnode.files import acquisition, catalog, staging
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.files.builtin_sources import builtin_sources
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.observe.metrics import Metrics
from meshnode.store.opening import open_store
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse

root, model, dying, nth = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
if dying:
    place, name = {"publish": (staging, "publish_shard"), "remove": (catalog.ModelCatalog, "remove")}[dying]
    real, calls = getattr(place, name), []
    def fatal(*arguments):
        calls.append(1)
        if len(calls) == nth:
            os._exit(9)
        return real(*arguments)
    setattr(place, name, fatal)

async def main():
    lanes, paths = Lanes(), DataPaths(root)
    async with open_store(paths.store, lanes) as store, trio.open_nursery() as nursery:
        known = await catalog.open_catalog(store, paths, Metrics(), {})
        mailbox = Mailbox("acquisition")
        sources = builtin_sources(lanes, offline=True, environment={}, downloads=paths.transfers)
        manager = acquisition.AcquisitionManager(known, mailbox, Latest(()), lanes, acquisition.Supply(sources), HealthBoard(), Pulse())
        await nursery.start(manager.run)
        print("ready", flush=True)
        while True:
            manifest = await mailbox.ask(AcquireModel(model))
            await mailbox.ask(RemoveModel(manifest.name))

trio.run(main)
"""


def _child(data, model: Path, dying: str = "", nth: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", _CHILD, str(data.root), str(model), dying, str(nth)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def _die(data, model: Path, dying: str, nth: int) -> None:
    child = _child(data, model, dying, nth)
    with child:
        assert child.wait(60) == 9


@pytest.mark.processes
@pytest.mark.parametrize("nth", [1, 4, 6])
async def test_killed_while_shards_are_put_in_their_place_the_next_start_finishes(data, tiny, tmp_path, nth):
    source = shutil.copy2(tiny, tmp_path / "m.gguf")
    await trio.to_thread.run_sync(_die, data, source, "publish", nth)
    source.unlink()  # what is left must be enough
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        assert node.catalog.held(manifest.id) == {shard.id for shard in manifest.shards}
        assert data.files("partial") == []


@pytest.mark.processes
async def test_killed_before_the_catalog_forgets_the_removal_is_undone(data, tiny):
    await trio.to_thread.run_sync(_die, data, tiny, "remove", 1)
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        assert data.files("partial") == data.files("quarantine") == []


@pytest.mark.processes
async def test_killed_at_random_moments_the_folder_always_agrees_with_the_catalog(data, tmp_path):
    model = write_tiny_llama(tmp_path / "m.gguf", quantization="F32", blocks=2)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)

    def kill_at_a_random_moment():
        child = _child(data, model)
        with child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, 0.15))
            child.kill()

    for _ in range(4):
        await trio.to_thread.run_sync(kill_at_a_random_moment)
        async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
            manifests = node.catalog.manifests()
            for manifest in manifests:
                await node.settled(manifest)
            wanted = {shard.id for manifest in manifests for shard in manifest.shards}
            assert {path.stem for path in data.files("shards")} == wanted, seed
            assert data.files("partial") == data.files("quarantine") == [], seed

"""Imports and removals that are cancelled, killed, or run out of room: nothing is lost and nothing is left lying about."""

import errno
import os
import random
import resource
import shutil
import subprocess

import pytest
import trio
import trio.testing
from support.full_store import FullStore
from support.hub_server import run_hub
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, StoreError
from meshnode.files import staging
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.flow.lanes import Lanes
from meshnode.store.memory import MemoryStore
from meshnode.store.opening import open_store


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


class Cancelling(MemoryStore):
    """Has whoever asks give up once it has a model's row."""

    def __init__(self):
        super().__init__()
        self.asking = trio.CancelScope()

    async def commit(self, batch, *, sync=False):
        await super().commit(batch, sync=sync)
        if any(len(key) > 64 for key, _ in batch.changes):  # a model's row
            self.asking.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()  # until the cancellation is everywhere


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
    data.store = Cancelling()
    async with data.running() as node:
        with data.store.asking as asking:
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
    data.paths.quarantine.mkdir()
    (data.paths.quarantine / f"{'cd' * 32}.shard").write_bytes(b"of a model that was being removed")
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


# Killed


@pytest.mark.processes
@pytest.mark.parametrize("nth", [1, 4, 6])
async def test_killed_while_shards_are_put_in_their_place_the_next_start_finishes(data, tiny, tmp_path, killable, nth):
    source = shutil.copy2(tiny, tmp_path / "m.gguf")
    await dies(killable, data, source, "publish_shard", nth)
    source.unlink()  # what is left must be enough
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        assert node.catalog.held(manifest.id) == {shard.id for shard in manifest.shards}
        assert data.files("partial") == []


@pytest.mark.processes
async def test_killed_before_the_catalog_forgets_the_removal_is_undone(data, tiny, killable):
    await dies(killable, data, tiny, "remove", 1)
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        assert data.files("partial") == data.files("quarantine") == []


@pytest.mark.processes
@pytest.mark.parametrize(("dying", "nth", "blocks"), [("put", 2, {None, 0, 1, 2}), ("forget_held", 1, {None, 0})])
async def test_killed_while_blocks_are_dropped_all_of_them_are_here_or_none(data, tiny, killable, dying, nth, blocks):
    """The catalog is put once for the model and once without the blocks; then it is told that they are gone."""
    await dies(killable, data, tiny, dying, nth)
    async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
        (manifest,) = node.catalog.manifests()
        await node.settled(manifest)
        held = node.catalog.held(manifest.id)
        assert {shard.block for shard in manifest.shards if shard.id in held} == blocks
        assert {path.stem for path in data.files("shards")} == held
        assert data.files("partial") == data.files("quarantine") == []


@pytest.mark.processes
@pytest.mark.parametrize(("dying", "nth"), [("put", 1), ("publish_shard", 1), ("publish_shard", 4), ("_forget", 1)])
async def test_killed_around_the_adoption_what_came_of_a_hub_is_kept_before_and_gone_after(
    data, tiny, killable, dying, nth
):
    with run_hub() as hub:
        hub.repositories["some/m"] = {tiny.name: tiny.read_bytes()}
        reference = "hf:some/m"
        order = {"root": str(data.root), "endpoint": hub.endpoint, "reference": reference, "dying": dying, "nth": nth}
        said = await trio.to_thread.run_sync(killable, {"work": "fetch_one"} | order)
        assert said[-1] == "ended 9", said
        assert data.files("transfers")
        data.sources = (HubSource(Hub(hub.endpoint), Lanes(), data.paths.transfers),)
        async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
            assert bool(data.files("transfers")) == (dying == "put")
            manifest = await node.mailbox.ask(AcquireModel(reference))
            assert node.catalog.held(manifest.id) == {shard.id for shard in manifest.shards}
        assert data.files("transfers") == data.files("partial") == []
        assert hub.sent_bytes == tiny.stat().st_size


async def test_cancelled_once_the_catalog_keeps_the_model_nothing_of_the_hub_stays(data, tiny):
    with run_hub() as hub:
        hub.repositories["some/m"] = {tiny.name: tiny.read_bytes()}
        data.sources = (HubSource(Hub(hub.endpoint), Lanes(), data.paths.transfers),)
        data.store = Cancelling()
        async with data.running() as node:
            with data.store.asking as asking:
                await node.mailbox.ask(AcquireModel("hf:some/m"))
            assert asking.cancelled_caught
            await node.idle()
            (manifest,) = node.catalog.manifests()
            await node.settled(manifest)
            assert data.files("transfers") == data.files("partial") == []


@pytest.mark.processes
async def test_killed_at_random_moments_the_folder_always_agrees_with_the_catalog(data, tmp_path, killable):
    model = write_tiny_llama(tmp_path / "m.gguf", quantization="F32", blocks=2)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    for _ in range(6):
        order = {"work": "keep_house", "root": str(data.root), "model": str(model)}
        said = await trio.to_thread.run_sync(killable, order, moments.uniform(0, 0.15))
        assert said[-1] == "ended -9", (seed, said)
        async with open_store(data.paths.store, Lanes()) as data.store, data.running() as node:
            for manifest in node.catalog.manifests():
                await node.settled(manifest)
            assert {path.stem for path in data.files("shards")} == node.catalog.wanted(), seed
            assert data.files("partial") == data.files("quarantine") == [], seed


async def dies(killable, data, model, dying, nth):
    order = {"work": "keep_house", "root": str(data.root), "model": str(model), "dying": dying, "nth": nth}
    said = await trio.to_thread.run_sync(killable, order)
    assert said[-1] == "ended 9", said
